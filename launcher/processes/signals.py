"""How a run is asked to stop, from the terminal down to the step.

`wsss train` starts the launcher in its own session and with SIGTERM blocked, and all processes below inherit both. So a
signal to a terminal, a process group or a whole Slurm step stays pending in each process: forever in the launchers,
which would otherwise kill their children, and in a training process until its imports are done. Before training starts,
the process simply ends. Later a handler sets a flag, on which all ranks agree between two steps (Trainer.must_stop);
then the run ends with a checkpoint and leaves a mark.
"""

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launcher.errors import LAUNCHED

STOPPED = 128 + signal.SIGTERM  # exit code of a run that was asked to stop and did
PATIENCE_S = 20.0  # schedulers kill 30 s after their request
SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux
libc = ctypes.CDLL(None)


class Stopped(Exception):
    """A run was asked to stop and did; it is not finished."""


class WaitsInVain(BaseException):
    """A run was asked to stop, but waits for a batch that does not come. No retry of an `Exception` may catch it."""


@contextmanager
def record_signals(*signals: signal.Signals) -> Iterator[list[int]]:
    """Inside the block, these signals are only added to a list. Outside the main thread nothing changes.

    A process below a launcher that was asked to stop ignores them after the block: it may get the signal twice, from a
    scheduler that signals all processes and from the launcher, and ending by a signal would look like a failure.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    # below nohup the end of the terminal is ignored, also by us
    heard = [s for s in signals if s != signal.SIGHUP or signal.getsignal(s) != signal.SIG_IGN]
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in heard}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if came and os.environ.get(LAUNCHED) else handler)


@contextmanager
def stop_on_sigterm(waited_s: Callable[[], float]) -> Iterator[Callable[[], bool]]:
    """Inside the block, SIGTERM and SIGHUP only set a flag; yields a function that returns whether one was received.

    The first Ctrl-C does the same if no `wsss train` is above, which would send SIGTERM: torch's own launcher passes
    Ctrl-C on and waits for half a minute.

    Args:
        waited_s: how long the process has been waiting for something that may never come; called every PATIENCE_S after
            a SIGTERM.

    Raises:
        WaitsInVain: inside the block, PATIENCE_S or more after a SIGTERM, if it has been waiting for as long.
    """
    ended, lock = threading.Event(), threading.Lock()
    alone = not os.environ.get(LAUNCHED) and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with record_signals(signal.SIGTERM, signal.SIGHUP, *([signal.SIGINT] if alone else [])) as came:
        ours: Any = signal.getsignal(signal.SIGTERM)

        def record(number: int, frame: Any) -> None:
            if not first:
                threading.Thread(target=look_again, args=(threading.get_ident(),), daemon=True).start()
            ours(number, frame)
            if time.monotonic() - first.setdefault("at", time.monotonic()) >= PATIENCE_S <= waited_s():
                raise WaitsInVain

        def record_once(number: int, frame: Any) -> None:
            signal.signal(number, signal.default_int_handler)
            record(signal.SIGTERM, frame)

        def look_again(main_thread: int) -> None:
            while not ended.wait(PATIENCE_S):
                with lock:
                    if not ended.is_set():
                        signal.pthread_kill(main_thread, signal.SIGTERM)  # wakes it from a blocking call

        first: dict[str, float] = {}
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, record)
            if alone:
                signal.signal(signal.SIGINT, record_once)
        try:
            yield lambda: bool(came)
        finally:
            with lock:
                ended.set()


def end_with_parent(how: signal.Signals) -> None:
    """Ask the kernel for a signal when the parent process dies (on Linux; elsewhere nothing happens)."""
    if hasattr(libc, "prctl"):
        libc.prctl(SET_PARENT_DEATH_SIGNAL, how)


def follow_launcher() -> None:
    """The first call in a process that `launch` started, after its imports: from now on SIGTERM reaches it, and it gets
    one when the launcher dies, even by kill -9, so that nothing continues unwatched.

    While it only waits for the other processes, which may take minutes, SIGTERM ends it.
    """
    if not os.environ.get(LAUNCHED):
        return
    end_with_parent(signal.SIGTERM)
    if not launcher_lives():
        os.kill(os.getpid(), signal.SIGTERM)  # the launcher died before the kernel was asked
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def launcher_lives() -> bool:
    """Whether the parent is a launcher, and not the process that inherits the children of dead ones."""
    import psutil

    try:
        return any("accelerate" in part for part in psutil.Process(os.getppid()).cmdline())
    except psutil.Error:
        return False


def exit_code_when_stopped() -> int:
    """The exit code of a process of a stopped run; leaves the mark for `run_and_forward`.

    Launchers take any code but 0 for a failure, and restart everything or print a traceback.
    """
    if mark := os.environ.get(LAUNCHED):
        Path(mark).touch()
        return 0
    return 0 if "TORCHELASTIC_RUN_ID" in os.environ else STOPPED
