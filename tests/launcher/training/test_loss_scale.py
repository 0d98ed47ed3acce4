"""float16: gradients scaled up, overflows left out, and a run that resumes with its scale."""

import pytest
import torch
from support.tiny import VIT

from launcher.errors import ConfigError, RunError
from launcher.files import RUNS
from launcher.processes.zero_settings import settings_for
from launcher.tracking.tracker import read_metrics
from launcher.training import loss_scale
from launcher.training.loss_scale import LossScale
from launcher.training.run import train
from launcher.training.trainer import Trainer
from wsss.methods.classify import Classify

HALF = ["train.precision=fp16", f"model={VIT}", "data.val=null", "train.log_every=1"]


def make_scale(state):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    optimizer.param_groups[0]["loss_scale"] = state
    return LossScale(optimizer, torch.device("cpu"))


@pytest.mark.parametrize(
    ("before", "overflowed", "after", "at_fault"),
    [
        ([8, 5, 1], False, [8, 6, 1], False),
        ([8, 1999, 1], False, [16, 0, 1], False),
        ([8, 5, 1], True, [4, 0, 2], False),
        ([8, 1999, 1], True, [4, 0, 2], False),
        ([2, 0, 16], True, [1, 0, 17], False),
        ([1, 0, 16], True, [0.5, 0, 17], True),  # a gradient that no scale makes finite
    ],
)
def test_the_scale_follows_what_its_gradients_do(before, overflowed, after, at_fault):
    scale = make_scale(before)
    kept = scale.state
    assert bool(scale.follow(torch.tensor(overflowed), lambda value, _: value)) is at_fault
    assert scale.state.tolist() == after and scale.state is kept  # the tensor that a CUDA graph reads


def test_gradients_come_back_as_they_were():
    scale, weight = make_scale([1024, 0, 0]), torch.nn.Parameter(torch.tensor([3.0]))
    scale.up((weight**2).sum()).backward()
    assert weight.grad.item() == 6 * 1024
    scale.down([weight, torch.nn.Parameter(torch.zeros(1))])
    assert weight.grad.item() == 6


def test_a_loss_that_is_not_finite_on_another_rank_is_no_overflow():
    scale = make_scale([8, 0, 0])
    scale.see(torch.tensor(2.0))
    assert scale.follow(torch.tensor(True), lambda value, _: value + 1)
    assert not scale.follow(torch.tensor(True), lambda value, _: value)


def test_overflows_are_left_out_and_counted_and_the_scale_is_part_of_a_checkpoint(in_tmp, tiny_config, monkeypatch):
    monkeypatch.setattr(loss_scale, "START", 2.0**26)
    whole, cut = (tiny_config("classify", *HALF, f"name={name}", "train.steps=12") for name in ("whole", "cut"))
    of_whole = train(whole).state_dict()
    lines = [line for line in read_metrics(RUNS / "whole") if "train/loss" in line]
    left_out, scales = ([line[f"train/{name}"] for line in lines] for name in ("updates_left_out", "loss_scale"))
    assert scales == [2.0 ** (26 - n) for n in left_out] and 1 <= left_out[-1] < 12

    plain = Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", lambda self, batches: stop_after(3, self) or plain(self, batches))
    with pytest.raises(KeyboardInterrupt):
        train(cut)
    monkeypatch.setattr(Trainer, "train_step", plain)
    of_cut = train(cut).state_dict()
    assert all(torch.equal(of_cut[name], value) for name, value in of_whole.items())


def stop_after(step, trainer):
    if trainer.step == step:
        raise KeyboardInterrupt


def test_a_loss_that_is_not_finite_ends_the_run_at_its_step(in_tmp, tiny_config, monkeypatch):
    monkeypatch.setattr(Classify, "forward", poisoned(Classify.forward, 2))
    with pytest.raises(RunError, match="non-finite loss or gradient at step 3"):
        train(tiny_config("classify", *HALF, "train.steps=6"))


def poisoned(forward, at):
    def with_nan(self, batch, step):
        losses = forward(self, batch, step)
        return {**losses, "loss": losses["loss"] * float("nan")} if step == at else losses

    return with_nan


def test_deepspeed_trains_no_float16(tiny_config):
    with pytest.raises(ConfigError, match=r"launch.zero: .* set train.precision=bf16"):
        settings_for(tiny_config("classify", "launch.zero=2", "train.precision=fp16"), 2)
