"""Ctrl-C and SIGTERM end a command in time, whatever it is doing, with one line and exit code 130 or 143."""

import atexit
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

GRACE_S = 2.0  # how long a command may take to end normally
NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
USUAL: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}

came: list[int] = []  # signals that asked this command to end


class Interrupted(KeyboardInterrupt):
    """Raised instead of a plain KeyboardInterrupt, which ends a Python process by SIGINT, whatever its exit code."""


@contextmanager
def ending_in_time() -> Iterator[None]:
    """Inside the block, SIGINT and SIGTERM kill the worker processes and raise KeyboardInterrupt; the process ends with
    the block. The exception may be lost in a destructor or in importing C code, or the cleanup may wait for a thread or
    a store. So the process ends after GRACE_S in any case, and at once at a second signal; every file that a command
    writes is complete or absent.

    A signal that is ignored, as below nohup, or handled by others remains so. Outside the main thread nothing changes.
    """
    ours: list[signal.Signals] = []
    if threading.current_thread() is threading.main_thread():
        ours = [number for number, handler in USUAL.items() if signal.getsignal(number) == handler]
    for number in ours:
        signal.signal(number, interrupt)
    try:
        yield
    except BaseException:
        if not came:
            raise
        atexit._run_exitfuncs()  # cleans up TMPDIR; a normal exit would take seconds to unload all modules
        end_now()
    finally:
        for number in ours if not came else []:
            signal.signal(number, USUAL[number])


def interrupt(number: int, frame: FrameType | None) -> NoReturn:
    came.append(number)
    if len(came) > 1:
        end_now()
    threading.Thread(target=end_later, daemon=True).start()
    sys.unraisablehook = threading.excepthook = hush
    for process in multiprocessing.active_children():
        process.kill()
    if is_importing(frame):
        atexit._run_exitfuncs()
        end_now()
    raise Interrupted


def is_importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported: torch's C++ aborts if an exception leaves an import that it requested."""
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def hush(_: Any) -> None:
    """Drop the messages of destructors and threads that the interruption breaks."""


def end_later() -> NoReturn:
    time.sleep(GRACE_S)
    end_now()


def end_now() -> NoReturn:
    words = f"stopped by {NAMES[signal.Signals(came[0])]}; what is finished is kept, and the same command does the rest"
    print(f"\n{words}", file=sys.stderr, flush=True)
    os._exit(128 + came[0])
