"""Real `accelerate launch` with one and two CPU processes."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.places import children, environment
from support.together import together, trained

from launcher.config.file import load_config
from launcher.processes.launch import launch_command
from launcher.run.folder import Run


def start(yaml, overrides, cwd, module="support.ranks"):
    argv, extra = launch_command(load_config(yaml, overrides), module, [str(yaml), *overrides])
    return subprocess.Popen(
        argv, cwd=cwd, env=environment(extra), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process, code=0):
    said, _ = process.communicate(timeout=200)
    assert process.returncode == code, said
    return said


@pytest.fixture
def distill(in_tmp, finished_runs, tiny_yaml):
    """A YAML for `distill` in a folder that has the teacher it wants."""
    (in_tmp / "runs").mkdir()
    (in_tmp / "runs/teacher").symlink_to(finished_runs / "runs/teacher")
    return tiny_yaml("distill")


def test_two_processes_train_as_one(distill, in_tmp):
    together(1, trained, distill, [["launch.processes=1", "name=one", "train.ema_decay=0.5"]])
    together(2, trained, distill, [["launch.processes=2", "name=two", "train.ema_decay=0.5", "data.workers=1"]])
    for file in ("trained", "model"):  # the weights, and their average
        one, two = (load_file(in_tmp / f"runs/{name}/step_0000004/{file}.safetensors") for name in ("one", "two"))
        for name, tensor in one.items():  # the same samples, summed in another order
            torch.testing.assert_close(tensor, two[name], atol=2e-4, rtol=1e-3)


@pytest.mark.slow  # the door through accelerate launch; jobs/test_shares.py has two processes of a job
def test_two_processes_infer_what_one_does(run, scenes, in_tmp):
    def digests():
        return {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(run, "cams/val").glob("*.tar")
        }

    alone = digests()
    shutil.rmtree(run / "cams/val")
    arguments = json.dumps({"run": str(run), "split": "val", "folder": str(scenes / "val")})
    argv, extra = launch_command(Run(run, ["launch.processes=2"]).config, "launcher.jobs.infer", [arguments])
    process = subprocess.run(
        argv, cwd=in_tmp, env=environment(extra), capture_output=True, text=True, timeout=200, check=False
    )
    assert process.returncode == 0, process.stderr
    assert digests() == alone and len(alone) == 12
    assert "infer val: 12/12" in process.stderr  # every second of 12 shards of two images


def test_a_launched_run_killed_with_all_its_processes_resumes_to_bit_equal_weights(distill, in_tmp):
    overrides = ["launch.processes=2", "train.steps=40", "train.save_every=2", "train.eval_every=40"]
    together(2, trained, distill, [[*overrides, "name=whole"]])
    overrides += ["name=killed"]
    process = start(distill, overrides, in_tmp)
    deadline = time.monotonic() + 120
    while not list(in_tmp.glob("runs/killed/step_*/state.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    for child in children(process.pid):
        os.kill(child, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert not (in_tmp / "runs/killed/step_0000040").exists()
    said = finish(start(distill, overrides, in_tmp))
    assert "resuming from runs/killed/step_" in said
    whole, killed = (load_file(in_tmp / f"runs/{n}/step_0000040/model.safetensors") for n in ("whole", "killed"))
    assert all(torch.equal(tensor, killed[name]) for name, tensor in whole.items())
    ranks = [json.loads((in_tmp / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert [rank["world_size"] for rank in ranks] == [2, 2]
    assert ranks[0]["sha256"] == ranks[1]["sha256"]
    assert json.loads((in_tmp / "runs/killed/run.json").read_text())["processes"] == 2


@pytest.mark.slow
def test_the_users_own_accelerate_launch_works_or_says_what_is_wrong(distill, in_tmp):
    """`accelerate launch --cpu --num_processes 2` starts one process and says nothing; the run must."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--mixed_precision", "no", "--dynamo_backend", "no"]
    train = ["-m", "launcher.train", str(distill), "launch.processes=2", "name=own", "train.steps=1"]

    def run(*flags):
        return subprocess.run(
            [*launch, "--num_machines", "1", "--main_process_port", "0", *flags, *train],
            cwd=in_tmp,
            env=environment({}),
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    trap = run("--cpu", "--num_processes", "2")
    assert trap.returncode != 0
    assert "launch.processes is 2, but the launcher started 1" in trap.stderr
    assert not (in_tmp / "runs/own").exists()
    # Without ACCELERATE_USE_CPU Accelerate alone would run two trainings that never talk to each other.
    own = run("--multi_gpu", "--num_processes", "2")
    assert own.returncode == 0, own.stderr
    assert json.loads((in_tmp / "runs/own/run.json").read_text())["processes"] == 2
