"""One writer per run folder."""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launcher.errors import RunError

LOCK, LOCK_WAIT_S = ".lock", 20.0


def find_holder(run: Path) -> str | None:
    """Which process trains in a run's folder, as it wrote; None if none does. Not for the process that does: it would
    let go of its lock.

    Raises:
        OSError: there are no locks here.
    """
    try:
        with (run / LOCK).open() as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except FileNotFoundError:
        return None
    except (BlockingIOError, PermissionError):
        return (run / LOCK).read_text().strip() or "another process"


@contextmanager
def only_writer(run: Path, wait_s: float = LOCK_WAIT_S) -> Iterator[None]:
    """Hold a run's folder against a second training; the kernel lets go of it when this process ends, however.

    Raises:
        RunError: another process still holds it after wait_s.
    """
    run.mkdir(parents=True, exist_ok=True)
    with (run / LOCK).open("a+") as file:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    file.seek(0)
                    raise RunError(
                        f"{run}: is being trained by {file.read().strip() or 'another process'}; end that first, or "
                        "give this run another name"
                    ) from error
                time.sleep(0.2)
        try:
            file.seek(0)
            file.truncate()
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        except OSError as error:
            raise RunError(f"{run / LOCK}: cannot be written ({error}); make room on this disk") from error
        yield
