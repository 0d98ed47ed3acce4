import hashlib
import json
import re
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from networks import tiny_vit

from launcher.errors import RunError, told
from launcher.topology import make_accelerator
from launcher.tracking import RUNS, NoTracker, read_metrics
from launcher.train import batches_from, train
from launcher.trainer import Trainer, poisoned, seed_step, to_device
from shards.stream import ShardFolder
from wsss.methods import Classify


def digest(method):
    state = method.state_dict()
    return hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state))).hexdigest()


def test_a_run_leaves_checkpoints_metrics_config_and_facts(in_tmp, tiny_config):
    train(tiny_config("classify"))
    run = RUNS / "teacher"
    assert {".lock", "config.yaml", "run.json", "metrics.jsonl", "step_0000002", "step_0000004"} == {
        p.name for p in run.iterdir()
    }
    lines = read_metrics(run)
    assert [line["step"] for line in lines if "train/loss" in line] == [2, 4]
    assert all(line["train/images_per_s"] > 0 for line in lines if "train/loss" in line)
    last = [line for line in lines if "val/average_precision" in line][-1]
    assert {"val/class_map/per_image_iou", "val/class_map/false_alarm_area", "val/class_map/chimney_area"} <= set(last)
    about = json.loads((run / "run.json").read_text())
    assert about["classes"] == ["smoke"] and about["packages"]["torch"] == torch.__version__.split("+")[0]


def test_training_lowers_the_loss(in_tmp, tiny_config):
    train(tiny_config("classify", "train.steps=60", "train.lr=1e-2", "train.log_every=10", "train.eval_every=60"))
    losses = [line["train/loss"] for line in read_metrics(RUNS / "teacher") if "train/loss" in line]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("method", ["classify", "distill"])
def test_a_run_that_was_cut_off_ends_bit_equal_to_one_that_was_not(in_tmp, tiny_config, method, monkeypatch):
    if method == "distill":
        train(tiny_config("classify"))
    whole = digest(train(tiny_config(method, "train.steps=6", "name=whole")))

    steps = []
    plain_step = Trainer.train_step

    def cut_off(self, batches):
        steps.append(self.step)
        if len(steps) == 6:  # after step 5, whose checkpoint is step 4
            raise KeyboardInterrupt
        plain_step(self, batches)

    config = tiny_config(method, "train.steps=6", "name=cut")
    monkeypatch.setattr(Trainer, "train_step", cut_off)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    assert sorted(p.name for p in (RUNS / "cut").glob("step_*")) == ["step_0000002", "step_0000004"]
    resumed = digest(train(config))
    assert steps == [0, 1, 2, 3, 4, 5, 4, 5]
    assert resumed == whole
    logged = [line["step"] for line in read_metrics(RUNS / "cut") if "train/loss" in line]
    assert logged == [2, 4, 6]  # no step twice


def test_a_finished_run_is_not_trained_again(in_tmp, tiny_config, capsys):
    first = digest(train(tiny_config("classify")))
    assert digest(train(tiny_config("classify"))) == first
    assert "all 4 steps were done already" in capsys.readouterr().out


def test_other_settings_in_the_same_folder_are_refused(in_tmp, tiny_config):
    train(tiny_config("classify", "train.steps=2"))
    with pytest.raises(RunError, match=r"begun with other settings \(train.lr: 0.001 -> 0.1\)"):
        train(tiny_config("classify", "train.steps=2", "train.lr=0.1"))
    train(tiny_config("classify", "train.steps=2", "train.log_every=1", "evaluate.gallery=2"))


def test_other_data_under_the_same_name_are_refused(in_tmp, tiny_config):
    train(tiny_config("classify", "train.steps=0"))
    path = RUNS / "teacher/run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dataset_fingerprint": "0" * 16}))
    with pytest.raises(RunError, match="dataset fingerprint: 0000000000000000 -> "):
        train(tiny_config("classify", "train.steps=0"))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_does_not_decode_stops_the_run_and_is_named(in_tmp, tiny_config, scenes, workers, capsys):
    folder = shutil.copytree(scenes / "train", in_tmp / "broken")
    shards = ShardFolder(folder)
    for number, (offset, size) in enumerate(shards.index.shards[4].members["jpg"]):
        path = folder / shards.index.shards[4].name
        data = bytearray(path.read_bytes())
        data[offset : offset + size] = bytes(size)
        path.write_bytes(data)
        assert number < 4
    with pytest.raises(SystemExit) as end, told():
        train(tiny_config("classify", "train.steps=20", "data.train=broken", f"data.workers={workers}"))
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert re.search(r"^error: broken/train-00004.tar: sample 'train-\d+': image does not decode", said, re.M)
    assert "Traceback" not in said


def test_zero_steps_save_and_evaluate_the_untrained_model(in_tmp, tiny_config):
    train(tiny_config("classify", "train.steps=0"))
    assert (RUNS / "teacher/step_0000000/state.json").is_file()
    assert any("val/average_precision" in line for line in read_metrics(RUNS / "teacher"))


def test_gradient_accumulation_gives_the_update_of_the_whole_batch(in_tmp, tiny_config):
    # A ViT has no batch statistics, so the only difference is the order of float additions.
    vit = ["method.name=classify", "train.steps=2", "cam.kinds=[class_map]", "data.flip=0"]
    train(tiny_config("classify"))  # the distill config names a teacher
    once = train(tiny_config("distill", *vit, "name=a")).state_dict()
    twice = train(tiny_config("distill", *vit, "name=b", "train.accumulate=4")).state_dict()
    for name, tensor in once.items():
        torch.testing.assert_close(tensor, twice[name], atol=2e-4, rtol=1e-3)
    assert any(not torch.equal(tensor, twice[name]) for name, tensor in once.items())


class Breaks(Classify):
    """Its loss stops being finite at a step, in value or only in gradient."""

    def __init__(self, how):
        super().__init__(tiny_vit())
        self.how = how

    def forward(self, batch, step):
        losses = super().forward(batch, step)
        if step == 3:
            bad = losses["loss"].detach() * float("nan") if self.how == "value" else losses["loss"].sub(
                losses["loss"].detach()
            ).abs().sqrt()  # fmt: skip
            losses["loss"] = losses["loss"] + bad
        return losses


@pytest.mark.parametrize("how", ["value", "gradient"])
def test_a_loss_or_gradient_that_is_not_finite_stops_the_run_before_the_update(in_tmp, tiny_config, how):
    config = tiny_config("classify", "train.steps=8", "train.save_every=2")
    shards = ShardFolder(config.data.train)
    method = Breaks(how)
    before_step_3 = {}

    class Watch(Trainer):
        def train_step(self, batches):
            if self.step == 3:
                before_step_3.update({n: t.clone() for n, t in self.unwrapped.state_dict().items()})
            super().train_step(batches)

    trainer = Watch(
        config=config.train,
        run=RUNS / "breaks",
        resume_from=None,
        accelerator=make_accelerator(config, processes=None),
        method=method,
        optimizer=torch.optim.AdamW(method.parameters(), fused=True),
        lr_at=lambda step: 1e-3,
        batches_from=partial(batches_from, config, shards, 0, 1),
        evaluate=None,
        tracker=NoTracker(),
        global_batch_size=8,
    )
    with pytest.raises(RunError, match="non-finite loss or gradient at step 4; .*last good checkpoint: .*step_0000002"):
        trainer.fit()
    assert all(torch.equal(tensor, method.state_dict()[name]) for name, tensor in before_step_3.items())
    assert sorted(p.name for p in (RUNS / "breaks").iterdir()) == ["step_0000002"]


def test_a_loss_that_is_not_finite_makes_every_gradient_nan():
    weight = torch.ones(2, requires_grad=True)
    poisoned(weight.sum() + torch.tensor(float("inf"))).backward()
    assert torch.isnan(weight.grad).all()
    weight.grad = None
    poisoned(weight.sum()).backward()
    assert weight.grad.tolist() == [1.0, 1.0]


def test_images_become_floats_in_zero_to_one_on_the_device():
    batch = to_device({"image": torch.tensor([[0, 51, 255]], dtype=torch.uint8), "key": ["a"]}, torch.device("cpu"))
    assert batch["image"].tolist() == [pytest.approx([0.0, 0.2, 1.0])] and batch["key"] == ["a"]


def test_randomness_of_a_step_is_keyed_by_seed_step_and_rank():
    def draw(*key):
        seed_step(*key)
        return torch.rand(1).item()

    assert draw(0, 5, 0) == draw(0, 5, 0)
    assert len({draw(0, 5, 0), draw(0, 6, 0), draw(0, 5, 1), draw(1, 5, 0)}) == 4
    assert np.isfinite(draw(0, 0, 0))
