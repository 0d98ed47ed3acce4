"""The real thing, `wsss train` with its launcher and processes: asked to stop, killed in part, restarted in place."""

import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
from support.arena import difference, write_msee_yaml
from support.places import PYTHONPATH, ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

WAIT_S = 900
SETTINGS = [
    *("train.steps=60", "train.log_every=1", "train.save_every=5", "train.eval_every=60", "evaluate.gallery=0"),
    "launch.processes=2",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory, scenes):
    """A folder with the YAML of a tiny M-SEE and its undisturbed run of two processes, runs/whole."""
    from support.tiny import write_tiny_yaml

    folder = tmp_path_factory.mktemp("launched")
    write_msee_yaml(folder / "m.yaml", write_tiny_yaml(folder, scenes, "classify"))
    finish(start(folder, "name=whole"))
    return folder


def start(folder, *overrides, module="launcher"):
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE", "OMP", "MLFLOW"))},
        "PYTHONPATH": PYTHONPATH,
        "PYTHONUNBUFFERED": "1",
    }
    command = [sys.executable, "-m", module, "train", "m.yaml", *SETTINGS, *overrides]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process, code=0):
    said, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == code, said
    return said


def wait_for_checkpoint(process, run):
    deadline = time.monotonic() + WAIT_S
    while not list(run.glob("step_*/state.json")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.05)


def launcher_and_ranks(process):
    """The process of `accelerate launch`, and the training processes."""
    (launcher,) = psutil.Process(process.pid).children()
    ranks = [child for child in launcher.children() if "launcher.train" in child.cmdline()]
    return launcher, ranks


def assert_goes_on_bit_equal(folder, name, *overrides):
    said = finish(start(folder, f"name={name}", *overrides))
    assert f"resuming from runs/{name}/step_" in said
    assert difference(folder / "runs" / name, folder / "runs/whole") is None


def test_sigterm_to_wsss_train_ends_all_ranks_after_the_same_step_with_a_checkpoint(place):
    process = start(place, "name=told")
    wait_for_checkpoint(process, place / "runs/told")
    process.send_signal(signal.SIGTERM)
    said = finish(process, 128 + signal.SIGTERM)
    step = int(re.search(r"stopped after step (\d+) as requested", said).group(1))
    assert (place / f"runs/told/step_{step:07d}/state.json").is_file() and step < 60
    assert_goes_on_bit_equal(place, "told")


def test_sigterm_reaches_the_one_process_of_a_run_past_its_launcher(place):
    process = start(place, "name=one", "launch.processes=1")
    wait_for_checkpoint(process, place / "runs/one")
    process.send_signal(signal.SIGTERM)
    said = finish(process, 128 + signal.SIGTERM)
    assert "as requested; run the same command to resume" in said and "Traceback" not in said
    finish(start(place, "name=one", "launch.processes=1"))
    finish(start(place, "name=whole_of_one", "launch.processes=1"))
    assert difference(place / "runs/one", place / "runs/whole_of_one") is None


def test_a_sigterm_to_every_process_of_a_run_with_loader_processes_ends_in_a_checkpoint(place):
    process = start(place, "name=all", "data.workers=2")
    wait_for_checkpoint(process, place / "runs/all")
    for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        one.terminate()
    said = finish(process, 128 + signal.SIGTERM)
    assert "as requested; run the same command to resume" in said and "Traceback" not in said
    assert_goes_on_bit_equal(place, "all")


def test_when_wsss_train_is_killed_its_ranks_end_with_a_checkpoint(place):
    process = start(place, "name=unwatched")
    wait_for_checkpoint(process, place / "runs/unwatched")
    launcher, ranks = launcher_and_ranks(process)
    process.kill()
    _, alive = psutil.wait_procs([launcher, *ranks], timeout=120)
    assert not alive
    assert_goes_on_bit_equal(place, "unwatched")


def test_a_rank_that_is_killed_is_restarted_in_place(place):
    process = start(place, "name=restarted", "launch.max_restarts=3")
    wait_for_checkpoint(process, place / "runs/restarted")
    launcher_and_ranks(process)[1][-1].kill()
    said = finish(process)
    assert "resuming from runs/restarted/step_" in said
    assert difference(place / "runs/restarted", place / "runs/whole") is None


def test_when_the_launcher_is_killed_its_ranks_end_and_the_next_start_goes_on(place):
    process = start(place, "name=orphans")
    wait_for_checkpoint(process, place / "runs/orphans")
    launcher, ranks = launcher_and_ranks(process)
    launcher.kill()
    gone, alive = psutil.wait_procs(ranks, timeout=120)
    assert not alive and len(gone) == 2
    process.communicate(timeout=WAIT_S)
    assert process.returncode != 0
    assert_goes_on_bit_equal(place, "orphans")


def test_a_nan_on_one_rank_stops_both_and_names_its_samples(place):
    process = start(place, "name=nan", module="support.breaks_on_rank_1")
    said = process.communicate(timeout=WAIT_S)[0]
    assert process.returncode != 0
    story = re.search(r"error \(rank 0\): non-finite loss or gradient at step 4; (rank 1: .*)", said).group(1)
    assert "loss nan" in story and "rank 0:" not in story and "last good checkpoint: none" in story
    assert "wsss replay runs/nan --step 4" in story
    assert "error (rank 1): non-finite loss or gradient at step 4; rank 0 says more" in said
    assert not list((place / "runs/nan").glob("step_*"))


def test_a_step_of_two_processes_is_replayed_bit_for_bit(place):
    command = [sys.executable, "-m", "launcher", "replay", "runs/whole", "--step", "58", "--rank", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=place, env=environment, capture_output=True, text=True, timeout=WAIT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "step 58 of runs/whole, 2 processes, trained again from step 55" in done.stdout
    assert "as logged, bit for bit" in done.stdout and "NOT as logged" not in done.stdout
    assert "rank 1:" in done.stdout and "rank 0:" not in done.stdout
