"""What is handed to Slurm, below stand-ins of its commands: the files of configs/slurm and the task of a study."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.places import ROOT

from launcher.studies.slurm import slurm_script
from launcher.studies.table import load_study

RUNS = """
trap 'exit $ENDS' TERM
[ -z "$FAILS" ] || exit $FAILS
echo $SRUN_CPUS_PER_TASK > {0}.cores
echo $$ > {0}.pid
while :; do sleep 0.05; done
"""
STAND_INS = {
    "srun": RUNS.format("srun"),
    "wsss": RUNS.format("wsss"),
    "dask": 'echo \'{"address": "tcp://n1:8786"}\' > "$3"; while :; do sleep 0.05; done',
    "scancel": 'echo "$@" >> said; kill -TERM $(cat srun.pid)',
    "scontrol": '[ "$1" = show ] && echo n1 || echo "$@" >> said',
}


def begin(name: str, folder: Path, fails: str = "", ends: int = 143, ran: int = 300, **about: str) -> subprocess.Popen:
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/activate").touch()
    for command, does in STAND_INS.items():
        (folder / command).write_text(f"#!/bin/bash\n{does}\n")
        (folder / command).chmod(0o755)
    script = ROOT / f"configs/slurm/{name}.sbatch"
    if name == "study":
        script = folder / "task.sh"
        script.write_text(
            slurm_script("voc_mini", load_study("voc_mini"), [], [], []).split("<<'END'\n")[1].split("END\n")[0]
        )
    about |= {"SLURM_SUBMIT_DIR": str(folder), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]"}
    about |= {"SLURM_ARRAY_JOB_ID": "6", "SLURM_ARRAY_TASK_ID": "1", "SLURM_CPUS_PER_TASK": "32"}
    return subprocess.Popen(
        ["bash", str(script), "demo/teacher"],
        cwd=folder,
        env={
            **os.environ,
            **about,
            "FAILS": fails,
            "ENDS": str(ends),
            "SECONDS": str(ran),
            "PATH": f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
        start_new_session=True,
    )


def wait_for(file: Path, job: subprocess.Popen) -> str:
    while not file.exists() or not file.read_text().strip():
        assert job.poll() is None
        time.sleep(0.02)
    return file.read_text().strip()


@pytest.mark.parametrize("ends", [143, 0], ids=["stopped", "done by then"])
@pytest.mark.parametrize("name", ["one_node", "nodes", "jobs", "jobs over Dask", "study"])
def test_what_its_time_ends_is_stopped_and_queued_again(name, ends, tmp_path):
    name, _, dask = name.partition(" over ")
    job = begin(name, tmp_path, ends=ends, ENGINE="dask" if dask else "srun")
    wait_for(tmp_path / ("wsss.pid" if dask or name == "study" else "srun.pid"), job)
    if name != "study":
        assert wait_for(tmp_path / "srun.cores", job) == "32"  # of the node, where srun binds a task to its cores
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=30) == ends
    stopped = [] if dask or name == "study" else ["--signal=TERM 7"]
    again = [f"requeue {'6_1' if name == 'study' else '7'}"] if ends else []
    said = tmp_path / "said"
    assert (said.read_text().splitlines() if said.exists() else []) == [*stopped, *again]


@pytest.mark.parametrize("name", ["one_node", "nodes", "jobs", "study"])
def test_a_time_too_short_to_do_anything_is_told_and_not_queued_again(name, tmp_path, capfd):
    job = begin(name, tmp_path, ran=200)
    wait_for(tmp_path / ("wsss.pid" if name == "study" else "srun.pid"), job)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=30) == 143
    said = tmp_path / "said"
    assert "requeue" not in (said.read_text() if said.exists() else "")
    assert "not queued again: it must be at least 10 minutes" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["nodes", "jobs", "study"])
def test_what_fails_is_not_queued_again(name, tmp_path):
    assert begin(name, tmp_path, fails="2").wait(timeout=30) == 2
    assert not (tmp_path / "said").exists()
