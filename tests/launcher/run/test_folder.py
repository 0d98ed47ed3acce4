"""Runs are found below a folder by what only a run holds."""

import shutil
from pathlib import Path

import pytest

from launcher.errors import RunError
from launcher.evaluation.evaluate import EVALUATION, evaluate
from launcher.evaluation.report import write_report
from launcher.run.folder import Run, find_runs
from launcher.run.provenance import command_of


def test_mlflows_copies_of_configs_and_figures_are_no_runs(run):
    evaluate(run)
    copies = Path("runs/mlartifacts/1f57/artifacts")
    copies.mkdir(parents=True)
    for name in ("config.yaml", EVALUATION):
        shutil.copy(run / name, copies)
    assert find_runs(Path("runs")) == [Path("runs/student"), Path("runs/teacher")]
    assert find_runs(run) == [run] and find_runs(Path("nowhere")) == []
    assert write_report(Path("runs")).is_file()
    with pytest.raises(RunError, match="below it are runs/student, runs/teacher$"):
        Run(Path("runs"))


def test_a_run_notes_the_command_that_a_user_types():
    assert command_of(["/home/me/env/launcher/train.py", "a b.yaml", "x=1"]) == "wsss train 'a b.yaml' x=1"
    assert command_of(["pytest", "-q"]) == "pytest -q"
