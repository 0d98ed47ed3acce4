"""State files that a power cut left empty, full of zeros or cut: named, begun anew, and never in a checkpoint's way."""

import json
import shutil
from pathlib import Path

import pytest
from support.tiny import write_tiny_yaml

from launcher.config.file import load_config
from launcher.evaluation.report import write_report
from launcher.files import RUNS, Damaged
from launcher.run import steps
from launcher.run.folder import Run
from launcher.tracking.sync import sync
from launcher.tracking.tracker import read_metrics
from launcher.training.run import train
from shards.schema import DataError

LEFT = {"empty": b"", "zeros": b"\0" * 512, "cut": b'{"a": [1, 2', "another shape": b"[1]"}
FILES = ["run.json", "config.yaml", "tracking/wanted.json", "tracking/mlflow/sent.json", "step_0000002/figures.json"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, scenes, mlflow_store):
    """A folder with runs/teacher, trained for two steps."""
    place = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_store)
        train(load_config(write_tiny_yaml(place, scenes, "classify"), ["train.steps=2", "train.eval_every=2"]))
    return place


@pytest.fixture
def half_done(in_tmp, trained):
    return shutil.copytree(trained / "runs/teacher", RUNS / "teacher")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", LEFT)
def test_a_run_goes_on_from_its_sound_checkpoint(half_done, tiny_config, name, how, capsys):
    (half_done / name).write_bytes(LEFT[how])
    capsys.readouterr()
    train(tiny_config("classify", "train.steps=2", "train.eval_every=2"))
    said = capsys.readouterr()
    assert "resuming from runs/teacher/step_0000002" in said.out
    assert f"{half_done / name}" in said.err and "tracking does not" not in said.err
    assert Run(half_done).class_set
    assert steps.read_figures(half_done / "step_0000002")  # an evaluation that is lost is made up for
    assert [line["step"] for line in read_metrics(half_done)][-1] == 2


@pytest.mark.parametrize("how", ["zeros", "cut", "another shape"])
def test_lines_of_metrics_that_are_none_are_taken_out_and_the_others_stay(half_done, tiny_config, how, capsys):
    path = half_done / "metrics.jsonl"
    before = read_metrics(half_done)
    first, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + LEFT[how] + b"\n" + b"".join(rest))
    train(tiny_config("classify", "train.steps=2", "train.eval_every=2"))
    assert "metrics.jsonl: 1 lines are not JSON; they were moved to metrics.jsonl.damaged" in capsys.readouterr().err
    assert [line["time"] for line in read_metrics(half_done)] == [line["time"] for line in before]
    assert (half_done / "metrics.jsonl.damaged").read_bytes() == LEFT[how] + b"\n"


@pytest.mark.parametrize("name", ["run.json", "config.yaml"])
def test_what_reads_a_run_names_the_file_and_the_way_out(half_done, name):
    (half_done / name).write_bytes(b"")
    with pytest.raises(DataError, match=f"{half_done / name}: .*start its training again"):
        Run(half_done)


def test_a_damaged_evaluation_is_named_by_the_report(run):
    from launcher.evaluation.evaluate import evaluate

    evaluate(run)
    (run / "evaluation.json").write_bytes(b"")
    with pytest.raises(Damaged, match="evaluation.json: is empty, as after a power cut"):
        write_report(run)


def test_one_damaged_run_does_not_keep_the_others_from_being_sent(half_done, capsys):
    shutil.copytree(half_done, Path("runs/a_damaged"))
    for folder in ("a_damaged", "teacher"):
        (RUNS / folder / "tracking/mlflow/sent.json").unlink()
    Path("runs/a_damaged/tracking/wanted.json").write_bytes(b"")
    assert not sync(RUNS)
    said = capsys.readouterr()
    assert "wanted.json: is empty" in said.out and "runs/teacher: sent" in said.out


def test_the_identity_of_the_data_outlives_a_damaged_config(half_done, tiny_config):
    (half_done / "config.yaml").write_bytes(b"")
    train(tiny_config("classify", "train.steps=2", "train.eval_every=2"))
    assert json.loads((half_done / "run.json").read_text())["dataset_fingerprint"]
