"""train.ema_decay: an average that is judged and read, and weights that training goes on with."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.methods import TOYS, build
from support.tiny import VIT

from launcher.evaluation.protocol import describe_origin
from launcher.files import RUNS
from launcher.jobs.network_job import identify_checkpoint
from launcher.run.build import load_trained
from launcher.run.folder import Run
from launcher.run.steps import MODEL, TRAINED
from launcher.training import loss_scale
from launcher.training import run as running
from launcher.training.average import Average, name_beginning
from launcher.training.go_on import fork_run
from launcher.training.run import train
from launcher.training.trainer import Trainer

CPU = torch.device("cpu")
EACH = ["train.ema_decay=0.75", "train.save_every=1", "train.keep=20", "train.steps=4", "data.val=null"]


def equal(state, other):
    return state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)


def files_of(name, step):
    folder = RUNS / name / f"step_{step:07d}"
    return load_file(folder / MODEL), load_file(folder / TRAINED)


def test_an_average_by_hand():
    method = torch.nn.BatchNorm1d(1)
    average = Average(method, 0.75, CPU)
    for weight, count, left_out, expected in ((5.0, 1, None, 2.0), (4.0, 2, 0.0, 2.5), (9.0, 2, 1.0, 2.5)):
        with torch.no_grad():
            method.weight.fill_(weight)  # it was 1
            method.running_var.fill_(weight)  # so was this
            method.num_batches_tracked.fill_(count)
        average.follow(method, None if left_out is None else torch.tensor(left_out))
        assert [average.method.weight.item(), average.method.running_var.item()] == [expected, expected]
        assert average.method.num_batches_tracked == count
    with pytest.raises(ZeroDivisionError), average.in_place_of(method):
        inside = (method.weight.item(), method.running_var.item())
        raise ZeroDivisionError
    assert inside == (2.5, 2.5) and (method.weight.item(), average.method.weight.item()) == (9, 2.5)


@pytest.mark.parametrize("name", TOYS)
def test_any_method_has_an_average_that_trains_nothing_and_shares_its_teacher(name):
    method = build(name, 2, **TOYS[name].options)
    average = Average(method, 0.9, CPU)
    assert equal(average.method.state_dict(), method.state_dict())
    assert not any(p.requires_grad for p in average.method.parameters()) and not average.method.training
    own = {tensor.data_ptr() for tensor in method.state_dict().values()}
    assert not own & {tensor.data_ptr() for tensor in average.method.state_dict().values()}
    assert getattr(average.method, "teacher", None) is getattr(method, "teacher", None)


@pytest.fixture
def judged(monkeypatch):
    """The weights that validation saw."""
    seen: list[dict[str, torch.Tensor]] = []

    def make_validator(judge, *_):
        return lambda step: seen.append({k: v.clone() for k, v in judge.method.state_dict().items()}) or {}

    monkeypatch.setattr(running, "make_validator", make_validator)
    return seen


def test_a_checkpoint_has_both_and_everyone_reads_the_average(in_tmp, tiny_config, judged):
    config = tiny_config("classify", *EACH[:-1])
    trained = train(config).state_dict()
    averages, weights = zip(*(files_of("teacher", step) for step in (1, 2, 3, 4)), strict=True)
    for step in (1, 2, 3):
        for key, value in averages[step].items():
            if value.is_floating_point():
                expected = 0.75 * averages[step - 1][key] + 0.25 * weights[step][key]
                torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-5)
    assert equal(trained, weights[3]) and not equal(averages[3], weights[3])
    assert len(judged) == 1 and equal(judged[0], averages[3])
    assert equal(load_trained(Run(RUNS / "teacher")).method.state_dict(), averages[3])
    made_of = identify_checkpoint(RUNS / "teacher" / "step_0000004")
    said = "split val, checkpoint step_0000004 (weights averaged, ema_decay 0.75), training seed 3"
    assert describe_origin(made_of, "val", 3) == said


def test_a_run_that_was_cut_off_has_the_same_average(in_tmp, tiny_config, monkeypatch):
    train(tiny_config("classify", *EACH, "name=whole"))
    config, plain = tiny_config("classify", *EACH, "name=cut", "train.save_every=2"), Trainer.train_step

    def cut_off(self, batches):
        if self.step == 3:
            raise KeyboardInterrupt
        plain(self, batches)

    monkeypatch.setattr(Trainer, "train_step", cut_off)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    monkeypatch.setattr(Trainer, "train_step", plain)
    train(config)
    assert all(equal(*both) for both in zip(files_of("cut", 4), files_of("whole", 4), strict=True))


def test_a_fork_begins_an_average_or_leaves_it_behind(in_tmp, tiny_config):
    config = tiny_config("classify", *EACH, "train.steps=2")
    train(config)
    average, weights = files_of("teacher", 2)
    none = tiny_config("classify", *EACH, "train.ema_decay=null", "train.steps=3", "train.lr=1e-30", "name=none")
    fork_run(RUNS / "teacher", none)
    assert identify_checkpoint(RUNS / "none" / "step_0000002")["ema_decay"] == 0.75  # its parent's, as yet
    train(none)
    assert identify_checkpoint(RUNS / "none" / "step_0000003")["ema_decay"] is None
    assert not (RUNS / "none" / "step_0000003" / TRAINED).exists()
    assert equal_but_for_norms(load_file(RUNS / "none" / "step_0000003" / MODEL), weights)
    again = tiny_config("classify", *EACH, "train.steps=4", "train.lr=1e-30", "name=again")
    fork_run(RUNS / "none", again)
    train(again)
    assert equal_but_for_norms(files_of("again", 4)[0], weights) and not equal_but_for_norms(average, weights)


def equal_but_for_norms(state, other):
    return all(torch.equal(state[key], other[key]) for key in state if "running" not in key and "batches" not in key)


def test_an_update_that_float16_leaves_out_does_not_count(in_tmp, tiny_config, monkeypatch):
    monkeypatch.setattr(loss_scale, "START", 2.0**26)
    train(tiny_config("classify", *EACH, "train.precision=fp16", f"model={VIT}", "train.steps=12"))
    moved = []
    for step in range(2, 13):
        (before, old), (after, new) = files_of("teacher", step - 1), files_of("teacher", step)
        moved.append((equal(old, new), equal(before, after)))
    assert {same for same, _ in moved} == {True, False} and all(a == b for a, b in moved)
    assert Path("runs/teacher").is_dir()


def test_an_average_that_is_mostly_its_beginning_is_told():
    said = name_beginning(0.999, 200)  # 0.999 ** 200 is 0.819, 0.977 ** 200 is 0.0095
    assert said.startswith("train.ema_decay 0.999: after 200 steps 82 % of the average is still the initial weights")
    assert said.endswith("; 0.977 leaves 1 % of them")
    assert not any(name_beginning(*case) for case in ((None, 200), (0.999, 6000), (0.999, 0), (0.5, 7)))
