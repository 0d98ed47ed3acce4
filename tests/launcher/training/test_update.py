"""One update by hand: two micro-batches, two parameters, whatever is between their losses and their weights."""

from itertools import cycle

import pytest
import torch
from accelerate import Accelerator

from launcher.config.sections import TrainConfig
from launcher.errors import RunError
from launcher.training.skips import Skips
from launcher.training.update import Update
from wsss.methods.base import Method


class Line(Method):
    """The loss is (3 a + 4 b) times the mean x of the images."""

    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Parameter(torch.tensor(1.0)), torch.nn.Parameter(torch.tensor(2.0))
        self.drawn, self.batches, self.synchronised = [], [], 0

    def forward(self, batch, step):
        assert self.training
        self.drawn.append((step, torch.rand(()).item()))
        self.batches.append(batch)
        x = batch["image"].mean()
        return {"loss": (3 * self.a + 4 * self.b) * x, "x": x}

    def synchronise(self, gather):
        assert not torch.is_grad_enabled()
        self.synchronised += 1


class Breaks(Line):
    def forward(self, batch, step):
        losses = super().forward(batch, step)
        return {**losses, "loss": losses["loss"] * float("nan")} if step == 1 else losses


class Counting(Line):
    def counts(self, batch):
        return {"bright": (batch["image"] > 100).sum(), "images": torch.tensor(len(batch["image"]))}


IMAGES = [[51, 255], [255, 255]]  # x is 0.6 and 1, in a step 0.8: the gradient is (2.4, 3.2), 4 long


def make_update(tmp_path, method, **settings):
    accelerator = Accelerator(cpu=True)
    groups = [{"params": [method.a]}, {"params": [method.b], "lr_factor": 2.0}]
    update = Update(
        config=TrainConfig(steps=2, lr=0.5, power=1.0, accumulate=2, **settings),  # rates 0.5 and 0.25
        run=tmp_path,
        accelerator=accelerator,
        method=method,
        optimizer=torch.optim.SGD(groups, lr=9.0, fused=True),
        skips=Skips(tmp_path, 0, accelerator),
    )
    update.begin()
    return update, cycle(
        {"image": torch.tensor(i, dtype=torch.uint8).reshape(2, 1, 1, 1), "key": ["i", "j"]} for i in IMAGES
    )


@pytest.mark.parametrize("precision", ["ieee", "fp16"])
@pytest.mark.parametrize(
    ("clip", "after"), [(None, ([-0.2, -0.8], [-1.2, -2.8])), (2.0, ([0.4, 0.1], [0.4, -0.4])), (5.0, None)]
)
def test_two_updates_by_hand(tmp_path, clip, after, precision):
    method = Line()
    update, batches = make_update(tmp_path, method, max_grad_norm=clip, ema_decay=0.75, precision=precision)
    of_a, of_b = after or ([-0.2, -0.8], [-1.2, -2.8])
    averages, loss = [1.0, 2.0], 3 * 1.0 + 4 * 2.0
    for step in (0, 1):
        method.eval()  # as an evaluation leaves it
        update(batches, step)
        now = [of_a[step], of_b[step]]
        assert [method.a.item(), method.b.item()] == pytest.approx(now, abs=1e-5)
        averages = [0.75 * average + 0.25 * weight for average, weight in zip(averages, now, strict=True)]
        assert [update.average.method.a.item(), update.average.method.b.item()] == pytest.approx(averages, abs=1e-5)
        figures = update.read_window(images=4)
        assert figures["train/loss"] == pytest.approx(0.8 * loss, abs=1e-5) and figures["train/x"] == pytest.approx(0.8)
        assert figures["train/images_per_s"] * figures["system/step_seconds"] == pytest.approx(4)
        scaled = {name: figures[name] for name in ("train/loss_scale", "train/updates_left_out") if name in figures}
        assert scaled == ({"train/loss_scale": 65536, "train/updates_left_out": 0} if precision == "fp16" else {})
        loss = 3 * now[0] + 4 * now[1]
    assert method.synchronised == 2 and not update.window.batches


def test_an_update_that_overflows_is_left_out_by_hand(tmp_path):
    """2.4 x 2 ** 127 is no float32."""
    method = Line()
    update, batches = make_update(tmp_path, method, precision="fp16", ema_decay=0.75)
    assert update.loss_scale.state.tolist() == [65536, 0, 0]
    for step, scale in ((0, 65536.0), (1, 2.0**127)):
        update.loss_scale.state[0] = scale
        update(batches, step)
        assert [method.a.item(), method.b.item()] == pytest.approx([-0.2, -1.2])
        assert [update.average.method.a.item(), update.average.method.b.item()] == pytest.approx([0.7, 1.2])
    figures = update.read_window(images=4)
    assert (figures["train/loss_scale"], figures["train/updates_left_out"]) == (2.0**126, 1)


def test_on_a_cpu_the_update_itself_tells_a_loss_that_is_not_finite(tmp_path):
    method = Breaks()
    update, batches = make_update(tmp_path, method)
    update(batches, 0)
    with pytest.raises(RunError, match="non-finite loss or gradient at step 2"):
        update(batches, 1)
    assert [method.a.item(), method.b.item()] == pytest.approx([-0.2, -1.2])


def test_what_a_step_draws_does_not_depend_on_the_steps_before_it(tmp_path):
    whole, resumed = Line(), Line()
    update, batches = make_update(tmp_path, whole)
    update(batches, 0), update(batches, 1)
    update, batches = make_update(tmp_path, resumed)
    update(batches, 1)
    assert resumed.drawn == whole.drawn[2:] and len(set(whole.drawn)) == 4


def test_the_totals_of_a_step_are_known_in_each_of_its_micro_batches(tmp_path):
    method = Counting()
    update, batches = make_update(tmp_path, method)
    update(batches, 0)
    assert [batch["totals"] for batch in method.batches] == [{"bright": 3, "images": 4}] * 2
    assert [batch["shares"] for batch in method.batches] == [2, 2]
    assert [method.a.item(), method.b.item()] == pytest.approx([-0.2, -1.2])
