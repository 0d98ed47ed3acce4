import re

import pytest
import torch
from support.networks import tiny_vit

from launcher.errors import RunError
from launcher.files import RUNS
from launcher.tracking.tracker import read_metrics
from launcher.training.inputs import Inputs
from launcher.training.replay import measure_gradients, replay_here
from launcher.training.run import train
from launcher.training.trainer import Trainer
from launcher.training.watch import Watch
from wsss.methods.classify import Classify


@pytest.fixture
def run(in_tmp, tiny_config):
    """A run of six steps that keeps the checkpoints of steps 4 and 6."""
    config = tiny_config("classify", "train.steps=6", "train.log_every=1")
    train(config)
    return config


@pytest.mark.parametrize(("step", "begun_at"), [(6, 4), (5, 4), (2, 0)])
def test_a_step_is_run_again_bit_for_bit(run, step, begun_at, capsys):
    before = {path: path.stat().st_mtime_ns for path in RUNS.rglob("*")}
    replay_here(RUNS / "teacher", step)
    said = capsys.readouterr().out
    assert f"step {step} of runs/teacher, 1 processes, trained again from step {begun_at}" in said
    assert "as logged, bit for bit" in said and "NOT as logged" not in said
    keys = next(Inputs(run).batches_from(step - 1))["key"]
    assert f"samples: {', '.join(keys)}" in said
    assert "no NaN, no infinity anywhere" in said
    norms = dict(re.findall(r"(\w+(?:\.\w+)?) ([\d.e-]+)", said.split("gradient norms, of this rank alone: ")[1]))
    assert {"student.head", "student.backbone", "all"} <= set(norms) and float(norms["all"]) > 0
    assert before == {path: path.stat().st_mtime_ns for path in RUNS.rglob("*")}  # nothing was written


def test_a_log_that_says_something_else_is_told(run, capsys):
    path = RUNS / "teacher/metrics.jsonl"
    loss = next(line["train/loss"] for line in read_metrics(RUNS / "teacher") if line["step"] == 6)
    path.write_text(path.read_text().replace(f"{loss!r}", "0.5"))
    replay_here(RUNS / "teacher", 6)
    assert "NOT as logged" in capsys.readouterr().out


def test_a_step_that_the_run_does_not_have_is_refused(run):
    with pytest.raises(RunError, match="runs/teacher: has steps 1 to 6, not 7"):
        replay_here(RUNS / "teacher", 7)


def test_a_run_that_stopped_on_a_nan_is_told_where_it_came_from(in_tmp, tiny_config, monkeypatch, capsys):
    plain = Classify.forward

    def breaks(self, batch, step):
        losses = plain(self, batch, step)
        if step == 4:
            losses["loss"] = losses["loss"] + (losses["loss"].detach() - 10).sqrt()
        return losses

    monkeypatch.setattr(Classify, "forward", breaks)
    with pytest.raises(RunError, match="wsss replay runs/teacher --step 5"):
        train(tiny_config("classify", "train.steps=6", "train.log_every=1"))
    replay_here(RUNS / "teacher", 5)
    said = capsys.readouterr().out
    assert "trained again from step 4" in said and "losses: loss nan, cls_loss 0." in said
    assert re.search(r"first NaN: aten.sqrt.default in the forward pass at .*test_replay.py:\d+ in Classify", said)


class Hidden(Classify):
    """Its loss is finite, its gradient is not: the slope of a root at 0."""

    def forward(self, batch, step):
        losses = super().forward(batch, step)
        losses["loss"] = losses["loss"] + losses["loss"].sub(losses["loss"].detach()).sqrt() * 0
        return losses


def test_a_gradient_that_breaks_is_traced_to_its_forward_line():
    method = Hidden(tiny_vit())
    watch = Watch(method)
    with torch.autograd.set_detect_anomaly(True, check_nan=False), watch:
        losses = method({"image": torch.rand(2, 3, 32, 32), "image_label": torch.ones(2, 1)}, 0)
        losses["loss"].backward()
    assert losses["loss"].isfinite() and not measure_gradients(method)["all"] < float("inf")
    assert re.search(r"in the backward pass of SqrtBackward0, forward at File .*test_replay.py", watch.first["NaN"])


def test_numbers_that_stay_finite_leave_no_trace():
    method = Classify(tiny_vit())
    watch = Watch(method)
    with watch:
        method({"image": torch.rand(2, 3, 32, 32), "image_label": torch.ones(2, 1)}, 0)["loss"].backward()
    assert watch.first == {}


def test_who_only_reads_a_nan_is_not_blamed_for_it():
    bad, good = torch.tensor([float("nan")]), torch.tensor([0.0])
    watch = Watch(Classify(tiny_vit()))
    with watch:
        bad * 2
    assert watch.first == {}
    with watch:
        good / 0
    assert list(watch.first) == ["NaN"]


def test_the_steps_before_are_trained_and_not_saved(run, monkeypatch):
    steps = []
    plain = Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", lambda self, b: steps.append(self.step) or plain(self, b))
    replay_here(RUNS / "teacher", 3)
    assert steps == [0, 1]
