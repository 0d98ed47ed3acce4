"""Loader processes: forked by a server that has no threads (on a Mac spawned), and gone when their reader is.

A fork copies the locks of all threads and none of the threads, so that a child may wait for ever for a lock whose owner
it does not have. A training has such threads before its first batch: of its group, its trackers, its network. So it
never forks: Python's fork server does, a process with the imports of a loader and nothing else (D-164). Libraries of
macOS bear no fork at all, such as the one that says which proxy to take: there each process is started anew (D-194).
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
# What a whole group of processes may be sent. The server never hears it; loader processes hear of SIGTERM, see begin.
HELD_BACK = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def start_server() -> None:
    """Start the server, if one forks here and unless it runs. Its imports take a second or two, for which the first
    loader process waits.

    Raises:
        OSError: the machine does not allow it, such as for a TMPDIR in which a Unix socket has too long a name.
    """
    if METHOD != "forkserver":
        return
    # Before Python 3.11 the server would import from the working folder first, where other files may have our names.
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
    """Inside, this thread and the processes that it starts hear none of HELD_BACK."""
    signals = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    resource_tracker.ensure_running()  # else they start it, and let signals through again
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, signals)


@contextmanager
def starting() -> Iterator[None]:
    """Inside, processes are started that do not import the program which starts them: loaders need nothing of it, and
    it would cost each of them seconds, or run a script once more that does not guard its work by its name."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        with held_back() if METHOD == "spawn" else nullcontext():
            yield
    except KeyboardInterrupt:  # the server has been asked for a process that nobody knows
        if server := getattr(forkserver._forkserver, "_forkserver_pid", None):
            os.kill(server, signal.SIGKILL)
        raise
    finally:
        sys.modules["__main__"] = main


def begin(environment: Mapping[str, str]) -> None:
    """In a loader process: it ends with the process that it reads for, be that killed, and takes a SIGTERM as that
    does, since it may be sent to a whole job: a run that catches it decides itself when to stop, and needs batches
    until then. (Without a /proc that says so, as on a Mac, it ends.) Its exit code is 0, as torch's own handler has it:
    a process that ends sends its loader processes SIGTERM, and would take another code for a failure of theirs. Ctrl-C
    it leaves to that process.

    Args:
        environment: of who reads; the server may have started with another.
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
