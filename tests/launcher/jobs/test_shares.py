"""Jobs that were started several times, or in several processes: each shard is done, and its bytes are the same."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from launcher.__main__ import app
from launcher.config.sections import LaunchConfig, RefineConfig
from launcher.errors import RunError
from launcher.jobs import output
from launcher.jobs.infer import infer
from launcher.jobs.refine import refine
from launcher.jobs.shares import Share, own_share

CRF = RefineConfig(cams=("grad",), workers=1)


def srun(monkeypatch, number, count):
    """As in a task that srun has started."""
    variables = {"SLURM_JOB_ID": 7, "SLURM_STEP_ID": 0, "SLURM_PROCID": number, "SLURM_NTASKS": count}
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))


def tars(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).glob("*.tar"))}


@pytest.mark.parametrize(
    ("environ", "share"),
    [
        ({}, (0, 1)),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "4"}, (2, 4)),
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_NTASKS": "4"}, (3, 4)),
        # a step of two tasks in an allocation for eight
        (
            {"SLURM_STEP_ID": "1", "SLURM_PROCID": "1", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "2"},
            (1, 2),
        ),
        # one task, the batch script of an allocation for eight, and a shell of salloc: all of it is theirs
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, (0, 1)),
        ({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, (0, 1)),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"}, (0, 1)),
    ],
)
def test_a_share_is_that_of_a_task_of_srun_and_of_nobody_else(environ, share):
    found = own_share(environ=environ)
    assert (found.number, found.count) == share


@pytest.mark.parametrize("number", ["4", "-1", "x"])
def test_numbers_that_fit_no_step_are_told(number):
    with pytest.raises(RunError, match=rf"SLURM_PROCID='{number}' of '4' tasks: wanted 0 to one less"):
        own_share(environ={"SLURM_PROCID": number, "SLURM_NTASKS": "4"})


def test_what_the_command_line_says_of_machines_goes_before_slurm():
    launch = LaunchConfig(machines=2, machine_rank=1, main_address="a", port=1)
    assert own_share(launch, {"SLURM_PROCID": "3", "SLURM_NTASKS": "4"}) == Share(1, 2, "launch.machines")


def test_four_tasks_of_srun_refine_each_its_shards_and_leave_none_out(run, monkeypatch):
    (alone,) = refine(run, ["val"], CRF, name="alone")
    names, seen = list(tars(alone)), {}
    for number in (2, 0, 3, 1):  # whenever each looks
        srun(monkeypatch, number, 4)
        (out,) = refine(run, ["val"], CRF, name="four")
        seen[number] = sorted(set(tars(out)) - {name for of in seen.values() for name in of})
    assert seen == {number: names[number::4] for number in range(4)}
    assert tars(out) == tars(alone)
    (out / names[5]).unlink()
    for number in range(4):  # and what a task that died left is its again
        srun(monkeypatch, number, 4)
        refine(run, ["val"], CRF, name="four")
        assert (out / names[5]).exists() == (number >= 1)
    with pytest.raises(RunError, match=r"--overwrite in each of 4 tasks \(srun\) would remove what the others write"):
        refine(run, ["val"], CRF, name="four", overwrite=True)
    assert len(tars(out)) == 12


def test_machines_share_the_shards_out_and_are_not_ignored(run, scenes):
    shared = ["launch.machines=2", "launch.main_address=a", "launch.port=1"]
    for rank in (1, 0):
        out = infer(run, "val", scenes / "val", [*shared, f"launch.machine_rank={rank}"], "two")
        assert len(tars(out)) == (6 if rank else 12)
    assert tars(out) == tars(run / "cams/val")


def test_two_processes_of_this_machine_write_what_one_does(run, scenes):
    out = infer(run, "val", scenes / "val", ["launch.processes=2"], "two")
    assert tars(out) == tars(run / "cams/val") and len(tars(out)) == 12
    assert output.read_made_of(out) == output.read_made_of(run / "cams/val")


def test_what_is_not_shared_out_is_done_by_the_first_task_alone(run, monkeypatch, tmp_path):
    srun(monkeypatch, 1, 2)
    ended = CliRunner().invoke(app, ["evaluate", str(run)])
    assert ended.exit_code == 0 and "evaluate: only the first of 2 tasks (srun) does this" in ended.stderr
    assert not (run / "evaluation.json").exists()
    arguments = ["shards", "synthetic", "--out", str(tmp_path / "s"), "--split", "train", "--images", "2"]
    assert CliRunner().invoke(app, arguments).exit_code == 0 and not (tmp_path / "s").exists()
    srun(monkeypatch, 0, 2)
    assert CliRunner().invoke(app, ["evaluate", str(run)]).exit_code == 0
    assert json.loads((run / "evaluation.json").read_text())["sources"]
