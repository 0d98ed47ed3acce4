"""Loader processes: forked by a server that has no threads, and gone when the process is that they read for.

A fork copies the locks of all threads and none of the threads, so that a child may wait for ever for a lock whose owner
it does not have. A training has such threads before its first batch: of its group, its trackers, its network. So it
never forks: Python's fork server does, a process with the imports of a loader and nothing else (D-164).
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

METHOD = "forkserver"
# What a whole group of processes may be sent. The server never hears it; its children hear of SIGTERM, see begin.
HELD_BACK = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def start_server() -> None:
    """Start the server, unless it runs. Its imports take a second or two, for which the first loader process waits.

    Raises:
        OSError: the machine does not allow it, such as for a TMPDIR in which a Unix socket has too long a name.
    """
    # Before Python 3.11 the server would import from the working folder first, where other files may have our names.
    safe = sys.version_info >= (3, 11)
    forkserver.set_forkserver_preload(["shards.batches.loaders"] if safe else [])
    environment, signals = dict(os.environ), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    os.environ |= {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        resource_tracker.ensure_running()  # else the server starts it, and lets signals through again
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, signals)
        for name in ("PYTHONSAFEPATH", "PYTHONPATH"):
            del os.environ[name]
            os.environ |= {name: environment[name]} if name in environment else {}


@contextmanager
def starting() -> Iterator[None]:
    """Inside, processes are started that do not import the program which starts them: loaders need nothing of it, and
    it would cost each of them seconds, or run a script once more that does not guard its work by its name."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
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
    until then. Its exit code is 0, as torch's own handler has it: a process that ends sends its loader processes
    SIGTERM, and would take another code for a failure of theirs. Ctrl-C it leaves to that process.

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
