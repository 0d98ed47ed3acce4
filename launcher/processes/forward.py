"""Run a launcher or another command to its end: it passes signals on, and nothing is left running."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.errors import LAUNCHED
from launcher.processes.signals import STOPPED, end_with_parent, record_signals
from launcher.progress import say

STOP_S = 1800.0  # how long a run may take to stop: longer than GROUP_TIMEOUT and most evaluations
ALONE_S = 30.0  # how long a launcher may take to end after its children
SAY_EVERY_S = 60.0


def run_and_forward(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a launch command to its end. SIGTERM, Ctrl-C and the end of the terminal ask the processes below the launcher
    to stop; a second Ctrl-C kills them, as does a timeout, see Stopping.

    Returns:
        The launcher's exit code; STOPPED if the run was asked to stop, on this machine or another, and did, or if it
        was asked here and ended before it trained.
    """
    with tempfile.TemporaryDirectory() as folder, record_signals(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as came:
        mark = Path(folder) / "stopped"
        process, stopping = start(argv, {**environment, LAUNCHED: str(mark)}), None
        while (code := wait(process)) is None:
            if came:
                stopping = stopping or Stopping(process)
                stopping.go_on(at_once=len(came) > 1 and came[-1] == signal.SIGINT)
        if code and (errors := mark.with_suffix(".errors")).exists() and not mark.exists():
            if "--multi_gpu" in argv or "--use_deepspeed" in argv:  # these launchers print much after the error
                print(f"\nwhat ended it: {errors.read_text()}", end="", file=sys.stderr)
        elif mark.exists() or (came and code):
            return STOPPED
        return code


def run_below(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command to its end in a process of its own. Signals to this process are passed on to the command, which
    reports them; then this process ends with its exit code. The command has its own session, so that a Ctrl-C from the
    terminal reaches it only once.

    Returns:
        The exit code, if no signal came.
    """
    handed_on = 0
    with record_signals(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as came:
        process = subprocess.Popen(
            argv, env=environment, start_new_session=True, preexec_fn=lambda: end_with_parent(signal.SIGTERM)
        )
        while (code := wait(process)) is None:
            for number in came[handed_on:]:
                process.send_signal(number)
                handed_on += 1
    if came and code == 0:  # it was already ending, and reported nothing
        os.kill(os.getpid(), came[0])
    if came:
        sys.exit(code if code > 0 else 128 + came[0])
    return code


class Stopping:
    """Ends a launcher that was asked to stop: asks its children; if it has none, or they do not end in time, kills it
    and all processes below it."""

    def __init__(self, process: subprocess.Popen) -> None:
        self.process, self.asked = process, set[int]()
        self.began = self.alone_since = self.said = time.monotonic()

    def go_on(self, *, at_once: bool) -> None:
        """Call this repeatedly until the launcher has ended."""
        first, now = not self.asked, time.monotonic()
        if terminate_children(self.process, self.asked):
            self.alone_since = now
            if first:
                tell("asked to stop; waiting for the step to end. Ctrl-C kills the run at once")
        elif first:
            tell("asked to stop; no process trains yet, so there is nothing to wait for")
            at_once = True
        if now - self.said > SAY_EVERY_S:
            self.said = now
            minutes = (now - self.began) / 60
            tell(f"asked to stop {minutes:.0f} min ago; the step, its save or an evaluation is still running")
        if now - self.began > STOP_S:
            tell(f"asked to stop {STOP_S / 60:.0f} min ago and still running: killed; the last checkpoint is intact")
        if at_once or now - self.began > STOP_S or now - self.alone_since > ALONE_S:
            kill_all(self.process)


def tell(words: str) -> None:
    say(words, file=sys.stderr)


def start(argv: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen:
    """Start a launcher that ends when this process does, with SIGTERM blocked in it and in all processes below."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        return subprocess.Popen(
            argv, env=environment, start_new_session=True, preexec_fn=lambda: end_with_parent(signal.SIGKILL)
        )
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def wait(process: subprocess.Popen) -> int | None:
    try:
        return process.wait(timeout=0.2)
    except subprocess.TimeoutExpired:
        return None


def terminate_children(process: subprocess.Popen, asked: set[int]) -> bool:
    """Send SIGTERM once to each child of a launcher, also to those that it starts later; `asked` are their ids.

    Returns:
        Whether it has children.
    """
    import psutil

    try:
        children = psutil.Process(process.pid).children()
        for child in children:
            if child.pid not in asked:
                asked.add(child.pid)
                child.terminate()
        return bool(children)
    except psutil.NoSuchProcess:
        return True


def kill_all(process: subprocess.Popen) -> None:
    import psutil

    try:
        launcher = psutil.Process(process.pid)
        for one in [*launcher.children(recursive=True), launcher]:
            one.kill()
    except psutil.NoSuchProcess:
        return
