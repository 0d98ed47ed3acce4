"""Signals on their way: a launcher like Accelerate's (its name says so) between `wsss train` and a training process."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from support.places import ROOT

from launcher.errors import LAUNCHED
from launcher.processes.signals import STOPPED, stop_on_sigterm

LAUNCHER = """
import subprocess, sys, time
from pathlib import Path
Path("launching").touch()
time.sleep(600 * ("alone" in sys.argv))
sys.exit(subprocess.call([sys.executable, "child.py", *sys.argv[1:]]))
"""
CHILD = """
import os, sys, time
from pathlib import Path
from launcher.processes import signals
from launcher.processes.signals import WaitsInVain, follow_launcher, exit_code_when_stopped, stop_on_sigterm
signals.PATIENCE_S = 0.5
Path("pid").write_text(str(os.getpid()))
if "5" in sys.argv:
    sys.exit(5)
if "wrong" in sys.argv:
    from launcher.errors import RunError, report_user_errors
    os.environ |= {"RANK": "1", "WORLD_SIZE": "2"}
    with report_user_errors():
        raise RunError("no such thing")
time.sleep("importing" in sys.argv)  # for a second
follow_launcher()
try:
    # a long step is no wait for a batch
    with stop_on_sigterm(lambda: 10.0 * ("vain" in sys.argv and "step" not in sys.argv)) as asked:
        Path("begun").touch()
        if "vain" in sys.argv:
            time.sleep(2 if "step" in sys.argv else 600)
        while not asked() or "stubborn" in sys.argv:
            time.sleep(0.05)
except WaitsInVain:
    print("waits in vain", file=sys.stderr)
    sys.exit(exit_code_when_stopped())
Path("saved").touch()
time.sleep("slow" in sys.argv)
sys.exit(exit_code_when_stopped())
"""
WSSS = """
import os, sys
from launcher.processes import forward
from launcher.processes.forward import run_and_forward
if "short" in sys.argv:
    forward.STOP_S, forward.SAY_EVERY_S = 2.0, 0.5
sys.exit(run_and_forward([sys.executable, "accelerate_like.py", *sys.argv[1:]], os.environ))
"""


@pytest.fixture
def begin(tmp_path):
    """Start `wsss train` with these words for the child, and wait until a file of the child's is there.

    `hang_up`: what is done about the end of a terminal, which a process inherits; these tests may run below nohup.
    """
    started = []
    for name, source in (("accelerate_like.py", LAUNCHER), ("child.py", CHILD)):
        (tmp_path / name).write_text(source)

    def start(wait_for, *words, hang_up=signal.SIG_DFL):
        words += ("importing",) * (wait_for == "pid")
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        before = signal.signal(signal.SIGHUP, hang_up)
        process = subprocess.Popen(
            [sys.executable, "-c", WSSS, *words], cwd=tmp_path, env=environment, start_new_session=True,
            stderr=(tmp_path / "stderr").open("w"),
        )  # fmt: skip
        signal.signal(signal.SIGHUP, before)
        started.append(process)
        until((tmp_path / wait_for).exists)
        return process

    yield start
    for process in started:
        process.kill()


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def gone(tmp_path):
    pid = int((tmp_path / "pid").read_text())
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_the_exit_code_of_the_launcher_is_ours(begin):
    assert begin("pid", "5").wait(60) == 5


def test_the_error_of_a_rank_is_the_last_word(begin, tmp_path):
    """An elastic launcher has said much since."""
    assert begin("pid", "wrong", "--multi_gpu").wait(60) == 2
    assert (tmp_path / "stderr").read_text().endswith("what ended it: error (rank 1): no such thing\n")


# While the child imports, when there is nothing to save, and later.
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("when", ["pid", "begun"])
def test_a_sigterm_ends_in_a_checkpoint_and_the_code_of_a_stop(begin, tmp_path, when, how):
    """So does the end of the terminal."""
    process = begin(when)
    process.send_signal(how)
    assert process.wait(60) == STOPPED and (tmp_path / "saved").exists() == (when == "begun")


def test_below_nohup_the_end_of_the_terminal_stops_nothing(begin, tmp_path):
    process = begin("begun", hang_up=signal.SIG_IGN)
    for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
        one.send_signal(signal.SIGHUP)
    time.sleep(1)
    assert process.poll() is None and not (tmp_path / "saved").exists()
    process.terminate()
    assert process.wait(60) == STOPPED and (tmp_path / "saved").exists()


@pytest.mark.parametrize("when", ["pid", "begun"])
def test_so_does_one_that_every_process_of_the_tree_gets(begin, tmp_path, when):
    """As Slurm sends it."""
    process = begin(when, "slow")
    for pause_s in (0.0, 0.5):
        time.sleep(pause_s)
        for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.terminate()
    assert process.wait(60) == STOPPED and (tmp_path / "saved").exists() == (when == "begun")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_one_before_there_is_a_child_ends_the_launcher_at_once(begin, tmp_path, how):
    """As where it waits for another machine, for half an hour."""
    process = begin("launching", "alone")
    process.send_signal(how)
    assert process.wait(20) == STOPPED
    assert (tmp_path / "stderr").read_text().count("asked to stop; no process trains yet") == 1


def test_a_child_that_does_not_stop_is_killed_in_the_end_and_the_wait_is_told(begin, tmp_path):
    process = begin("begun", "stubborn", "short")
    process.terminate()
    assert process.wait(60) == STOPPED and not (tmp_path / "saved").exists()
    until(lambda: gone(tmp_path))
    said = (tmp_path / "stderr").read_text()
    assert "asked to stop; waiting for the step to end" in said and "the step, its save or an evaluation" in said
    assert "and still running: killed; the last checkpoint is intact" in said


@pytest.mark.parametrize("late", [False, True])
def test_a_child_that_waits_in_vain_for_a_batch_ends_without_one(begin, tmp_path, late):
    process = begin("begun", "vain", *(["step"] if late else []))
    process.terminate()
    assert process.wait(60) == STOPPED and (tmp_path / "saved").exists() == late
    assert ("waits in vain" in (tmp_path / "stderr").read_text()) != late


def test_a_run_that_was_stopped_elsewhere_is_stopped_here(begin, tmp_path):
    """A partner on another machine was told: the child stops though nobody told us."""
    process = begin("begun")
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
    assert process.wait(60) == STOPPED


def test_ctrl_c_stops_and_a_second_one_kills(begin, tmp_path):
    process = begin("begun")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == STOPPED and (tmp_path / "saved").exists()
    for name in ("saved", "begun"):
        (tmp_path / name).unlink()
    process = begin("begun", "stubborn")
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(60) != 0 and not (tmp_path / "saved").exists()
    until(lambda: gone(tmp_path))


@pytest.mark.skipif(sys.platform == "darwin", reason="no kernel but Linux's tells a child that its parent was killed")
@pytest.mark.parametrize("when", ["pid", "begun"])
@pytest.mark.parametrize("whom", ["wsss", "launcher"])
def test_a_child_whose_launchers_are_killed_ends_with_a_checkpoint(begin, tmp_path, whom, when):
    process = begin(when)
    (launcher,) = psutil.Process(process.pid).children()
    (process if whom == "wsss" else launcher).kill()
    until(lambda: gone(tmp_path))
    assert (tmp_path / "saved").exists() == (when == "begun")
    until(lambda: not launcher.is_running() or launcher.status() == psutil.STATUS_ZOMBIE)


def test_the_first_ctrl_c_asks_a_training_without_wsss_train_above_to_stop(monkeypatch):
    """As torch's own launcher hands it on; the second one ends it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        monkeypatch.delenv(LAUNCHED, raising=False)
        with stop_on_sigterm(lambda: 0.0) as asked:
            assert not asked()
            signal.raise_signal(signal.SIGINT)
            assert asked()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        monkeypatch.setenv(LAUNCHED, "mark")
        with pytest.raises(KeyboardInterrupt), stop_on_sigterm(lambda: 0.0):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
