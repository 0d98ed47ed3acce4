"""The files of configs/slurm, below stand-ins of Slurm's commands."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support.places import ROOT

STAND_INS = {
    "srun": 'trap "exit $ENDS" TERM; echo $$ > srun.pid; [ -z "$FAILS" ] || exit $FAILS; while :; do sleep 0.05; done',
    "scancel": 'echo "$@" >> said; kill -TERM $(cat srun.pid)',
    "scontrol": '[ "$1" = show ] && echo n1 || echo "$@" >> said',
}


def begin(name: str, folder: Path, fails: str = "", ends: int = 143) -> subprocess.Popen:
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/activate").touch()
    for command, does in STAND_INS.items():
        (folder / command).write_text(f"#!/bin/bash\n{does}\n")
        (folder / command).chmod(0o755)
    about = {"SLURM_SUBMIT_DIR": str(folder), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "FAILS": fails}
    about["ENDS"] = str(ends)
    return subprocess.Popen(
        ["bash", str(ROOT / f"configs/slurm/{name}.sbatch"), "demo/teacher"],
        env={**os.environ, **about, "PATH": f"{folder}:{os.environ['PATH']}"},
        start_new_session=True,
    )


@pytest.mark.parametrize("ends", [143, 0], ids=["stopped", "done by then"])
@pytest.mark.parametrize("name", ["one_node", "nodes"])
def test_a_run_whose_time_is_over_is_stopped_and_queued_again(name, ends, tmp_path):
    job = begin(name, tmp_path, ends=ends)
    while not (tmp_path / "srun.pid").exists() or not (tmp_path / "srun.pid").read_text().strip():
        assert job.poll() is None
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=30) == ends
    again = ["requeue 7"] if ends else []
    assert (tmp_path / "said").read_text().splitlines() == ["--signal=TERM 7", *again]


def test_a_run_that_fails_is_not_queued_again(tmp_path):
    assert begin("nodes", tmp_path, fails="2").wait(timeout=30) == 2
    assert not (tmp_path / "said").exists()
