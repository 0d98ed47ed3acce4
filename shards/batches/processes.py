"""Loader processes: forked by a server without threads (on a Mac spawned); they end with their reader.

A fork copies the locks of all threads but not the threads, so a child may wait forever for a lock whose owner it does
not have. A training has such threads before its first batch: those of its group, trackers and network. So it never
forks itself; Python's fork server does, a process with a loader's imports and nothing else (D-164). Libraries of macOS,
such as the one that knows the proxy to use, do not survive a fork at all: there each process is started anew (D-189).
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

METHOD = "spawn" if sys.platform == "darwin" else "forkserver"
# Signals that may be sent to a whole group of processes. The server blocks them; its children get SIGTERM, see begin.
HELD_BACK = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def start_server() -> None:
    """Start the server, if there is one on this system, unless it runs. Its imports take a second or two, for which the
    first loader process waits.

    Raises:
        OSError: the machine does not allow it, for example because TMPDIR is too long for a Unix socket's name.
    """
    if METHOD != "forkserver":
        return
    # Before Python 3.11 the server would import from the working folder first, which may have files with our names.
    safe = sys.version_info >= (3, 11)
    forkserver.set_forkserver_preload(["shards.batches.loaders"] if safe else [])
    environment = dict(os.environ)
    os.environ |= {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        with held_back():
            forkserver.ensure_running()
    finally:
        for name in ("PYTHONSAFEPATH", "PYTHONPATH"):
            del os.environ[name]
            os.environ |= {name: environment[name]} if name in environment else {}


@contextmanager
def held_back() -> Iterator[None]:
    """Inside the block, this thread and the processes that it starts have HELD_BACK blocked."""
    signals = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    resource_tracker.ensure_running()  # else they start it, which unblocks signals
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, signals)


@contextmanager
def starting() -> Iterator[None]:
    """Inside the block, started processes do not import the main program, which loaders do not need: importing it would
    take seconds in each, or run a script again that lacks `if __name__ == "__main__"`."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        with held_back() if METHOD == "spawn" else nullcontext():
            yield
    except KeyboardInterrupt:  # the server was asked for a process of which no one knows
        if server := getattr(forkserver._forkserver, "_forkserver_pid", None):
            os.kill(server, signal.SIGKILL)
        raise
    finally:
        sys.modules["__main__"] = main


def begin(environment: Mapping[str, str]) -> None:
    """In a loader process: make it end with its reader, the process that it reads for, even if that is killed.

    SIGTERM, which may be sent to a whole job, ends it unless the reader catches SIGTERM: then the reader decides when
    to stop, and needs batches until then. (Without /proc, as on a Mac, SIGTERM always ends it.) The exit code is 0, as
    with torch's own handler: a reader that ends sends its loader processes SIGTERM, and would take another code for a
    failure. Ctrl-C is left to the reader.

    Args:
        environment: of the reader; the server may have started with another.
    """
    os.environ.clear()
    os.environ |= environment
    reader: Any = multiprocessing.parent_process()

    def end_with_reader() -> None:
        reader.join()
        os._exit(0)

    def end_unless_reader_stays(*_: Any) -> None:
        try:
            status = Path(f"/proc/{reader.pid}/status").read_text()
        except OSError:
            os._exit(0)
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        if not caught >> (signal.SIGTERM - 1) & 1:
            os._exit(0)

    Thread(target=end_with_reader, daemon=True).start()
    signal.signal(signal.SIGTERM, end_unless_reader_stays)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
