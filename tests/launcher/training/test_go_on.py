"""Runs that get more steps, and runs that begin where another one stands."""

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file
from support.squares import Squares

from launcher.__main__ import main
from launcher.config.file import load_config
from launcher.errors import ConfigError, RunError
from launcher.files import RUNS
from launcher.run.folder import Run
from launcher.training.go_on import extend_run, fork_run
from launcher.training.replay import replay_here
from launcher.training.run import train
from shards.write import write_split

TEACHER = RUNS / "teacher"
QUICK = ("tracking.to=[]", "data.val=null", "data.tune=null")


@pytest.fixture
def config(in_tmp, tiny_config):
    """overrides -> Config; runs/teacher has made two steps of it."""
    train(tiny_config("classify", *QUICK, "train.steps=2"))
    return lambda *overrides: tiny_config("classify", *QUICK, *overrides)


def weights_of(run, step):
    folder = run / f"step_{step:07d}"
    moments = torch.load(folder / "optimizer.pt", weights_only=True)["state"]
    return load_file(folder / "model.safetensors"), moments


def assert_equal(run, other, step):
    (weights, moments), (their, theirs) = weights_of(run, step), weights_of(other, step)
    assert weights.keys() == their.keys() and all(torch.equal(weights[name], their[name]) for name in weights)
    assert all(torch.equal(moments[n]["exp_avg"], theirs[n]["exp_avg"]) for n in moments)


def test_an_extended_run_and_a_fork_are_what_so_many_steps_in_one_go_are(config):
    train(config("train.steps=4", "name=whole"))
    said = fork_run(TEACHER, config("train.steps=4", "name=fork"))
    assert said.startswith(f"{RUNS / 'fork'}: continues after step 2 of {TEACHER}; learning rate there 1.00e-")
    train(config("train.steps=4", "name=fork"))
    about = Run(RUNS / "fork").about
    assert about["parent"]["run"] == str(TEACHER) and about["parent"]["step"] == 2 and about["classes"] == ["smoke"]
    assert (
        about["parent"]["sha256"]
        == json.loads((TEACHER / "step_0000002/state.json").read_text())["sha256"]["model.safetensors"]
    )
    earlier = {**Run(TEACHER).about, "started": "2020-02-02T02:02:02+00:00"}
    (TEACHER / "run.json").write_text(json.dumps(earlier))
    assert extend_run(config("train.steps=4")).startswith(f"{TEACHER}: 2 -> 4 steps")
    train(load_config(TEACHER / "config.yaml"))
    about = Run(TEACHER).about
    assert about["extended"] == [{"from": 2, "to": 4, "at": 2}] and about["started"] == earlier["started"]
    for run in (TEACHER, RUNS / "fork"):
        assert_equal(run, RUNS / "whole", 4)
    with pytest.raises(RunError, match="has 4 steps; give more, or continue to these with `wsss train runs/teacher`"):
        extend_run(config("train.steps=4"))


def test_an_extension_with_other_settings_is_refused_before_the_run_is_changed(config):
    before = (TEACHER / "config.yaml").read_bytes(), (TEACHER / "run.json").read_bytes()
    with pytest.raises(RunError, match=r"begun with other settings \(train.lr: .* -> 0.5\)"):
        extend_run(config("train.steps=4", "train.lr=0.5"))
    assert ((TEACHER / "config.yaml").read_bytes(), (TEACHER / "run.json").read_bytes()) == before


def test_a_copy_of_a_run_does_not_go_on_in_the_folder_of_the_original(config, monkeypatch, capsys):
    shutil.copytree(TEACHER, RUNS / "copy")
    before = (TEACHER / "config.yaml").read_bytes()
    for words, code in ((["--extend", "4"], 2), (["--extend", "4", "name=copy", "--dry-run"], 0)):
        monkeypatch.setattr(sys, "argv", ["wsss", "train", "runs/copy", *words])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == code
    shown = capsys.readouterr()
    assert (
        "says name: teacher, so it would continue in runs/teacher; to continue in this folder give name=copy"
        in shown.err
    )
    assert "runs/copy: 2 -> 4 steps" in shown.out and (TEACHER / "config.yaml").read_bytes() == before


def test_a_run_whose_rate_depends_on_its_steps_is_not_extended_but_forked(config):
    train(config("train.steps=2", "train.power=1.0", "name=falling"))
    with pytest.raises(RunError, match=r"rate of runs/falling depends on .* --fork NAME train.steps=4"):
        extend_run(config("train.steps=4", "train.power=1.0", "name=falling"))
    said = fork_run(RUNS / "falling", config("train.steps=4", "train.power=1.0", "name=longer"), write=False)
    assert not (RUNS / "longer").exists()
    lr = config().train.lr  # the last step's rate was half of it, and so is that of step 3 of 4
    assert said.endswith(f"learning rate there {lr / 2:.2e}, from here {lr / 2:.2e}")


@pytest.mark.parametrize(
    ("overrides", "kind", "message"),
    [
        (
            ["name=teacher", "train.steps=4"],
            RunError,
            "--fork: runs/teacher exists; continue it with `wsss train ru",
        ),
        (["name=new"], RunError, "step_0000002 already has 2 steps, and train.steps is 2: give more"),
        (
            ["name=new", "train.steps=4", "train.weight_decay=0.5"],
            ConfigError,
            "train.weight_decay .* -> 0.5 would not take effect: .* model.weights=runs/teacher",
        ),
        (["name=new", "train.steps=4", "model.timm_name=resnet18"], RunError, "belongs to another method or model"),
        (
            ["name=new", "train.steps=4", "model.weights=timm"],
            ConfigError,
            "model.weights None -> timm would not take effect: the checkpoint of runs/teacher has all weights",
        ),
        (
            ["name=new", "train.steps=4", "model.timm_name=resnet10t.c3_in1k"],
            ConfigError,
            "model.timm_name resnet10t -> resnet10t.c3_in1k would not take effect",
        ),
        (
            ["name=new", "train.steps=4", "data.train=pets/train"],
            RunError,
            "was trained on the classes smoke, .* cat, dog",
        ),
    ],
)
def test_a_fork_that_would_not_be_what_was_asked_for_leaves_nothing(config, in_tmp, overrides, kind, message):
    write_split(Squares("train", 8, False), in_tmp / "pets", "train", "label")
    with pytest.raises(kind, match=message):
        fork_run(TEACHER, config("train.steps=2", *overrides))
    assert not (RUNS / "new").exists()


def test_a_fork_takes_no_changed_checkpoint_and_writes_beside_no_others(config):
    path = TEACHER / "step_0000002/model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(RunError, match="step_0000002: the bytes of model.safetensors have changed"):
        fork_run(TEACHER, config("train.steps=4", "name=new"))
    path.write_bytes(whole)
    shutil.copytree(TEACHER / "step_0000002", RUNS / "new/step_0000002")
    with pytest.raises(RunError, match="--fork: runs/new exists"):  # it lost its config
        fork_run(TEACHER, config("train.steps=4", "name=new"))


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--extend", "4", "--dry-run"], 0, "runs/teacher: 2 -> 4 steps"),
        (["--fork", "new", "--dry-run", "train.steps=4"], 0, "runs/new: continues after step 2 of runs/teacher"),
        (["--fork", "new", "--extend", "4"], 2, "give only one; for a fork with more steps add train.steps=4"),
        (["--extend", "4", "train.steps=5"], 2, "--extend 4 already sets train.steps; remove that override"),
        (["--fork", "new", "train.steps=4", "data.workers=99"], 2, "cannot feed 1 ranks x 99 workers"),
        (["--extend", "4", "data.workers=99"], 2, "cannot feed 1 ranks x 99 workers"),
        (["--extend", "4", "train.lr=1.0"], 2, "was begun with other settings (train.lr: 0.001 -> 1.0)"),
    ],
)
def test_what_is_tried_or_refused_changes_no_run_and_begins_none(config, monkeypatch, capsys, words, code, said):
    before = (TEACHER / "config.yaml").read_bytes()
    monkeypatch.setattr(sys, "argv", ["wsss", "train", str(TEACHER), *words])
    with pytest.raises(SystemExit) as end:
        main()
    shown = capsys.readouterr()
    assert end.value.code == code and said in shown.out + shown.err
    assert (TEACHER / "config.yaml").read_bytes() == before and not (RUNS / "new").exists()
    if code == 0:
        assert "launcher.train" in shown.out and f"{TEACHER / 'config.yaml'} " in shown.out


def test_a_fork_without_a_checkpoint_does_not_begin_as_another_run(config, tmp_path):
    lower = config("train.steps=4", "train.lr=1e-4", "train.save_every=1", "train.keep=9", "name=lower")
    fork_run(TEACHER, lower)
    train(lower)
    lost = "runs/lower: was forked after step 2 of runs/teacher, and has no checkpoint left from which step "
    with pytest.raises(
        RunError, match=f"{lost}2 can be computed: `wsss replay runs/teacher` repeats the steps of its pa"
    ):
        replay_here(RUNS / "lower", 2)
    replay_here(RUNS / "lower", 3)
    for folder in (RUNS / "lower").glob("step_*"):
        (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match=f"{lost}1 "):
        train(lower)
