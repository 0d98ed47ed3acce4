"""One writer per run folder."""

import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from launcher.errors import RunError
from launcher.files import take_lock, tell_refusal, temporary_name

LOCK, LOCK_WAIT_S = ".lock", 20.0


def find_holder(run: Path) -> str | None:
    """The process that trains in a run's folder, as recorded in its lock; None if there is none. Must not be called by
    that process itself: it would release its lock.

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
def only_writer(
    run: Path, wait_s: float = LOCK_WAIT_S, *, work: str = "trained", remedy: str = "give this run another name"
) -> Iterator[None]:
    """Lock a run's folder against a second training; the kernel releases the lock when this process ends, however it
    ends.

    Args:
        work, remedy: for the message: what the other process does with the folder, and what to do instead of ending it.

    Raises:
        RunError: another process still holds it after wait_s, or the folder cannot be written.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = (run / LOCK).open("a+")
    except OSError as error:
        raise RunError(f"{run}: cannot be written: {tell_refusal(error, run / LOCK)}") from error
    with file:
        try:
            held = take_lock(file.fileno(), wait_s=wait_s, of_process=True)
        except OSError as error:
            raise RunError(f"{run / LOCK}: cannot be locked: {tell_refusal(error, run / LOCK)}") from error
        file.seek(0)
        if held is False:
            raise RunError(
                f"{run}: is being {work} by {file.read().strip() or 'another process'}; end that first, or {remedy}"
            )
        if held is None:
            print(
                f"{run}: this file system has no locks (mount it with them: flock on Lustre, lockd on NFS), so nothing "
                "prevents a second training in this folder: do not start one",
                file=sys.stderr,
                flush=True,
            )
        try:
            file.truncate(0)  # past the file's buffer, which would be tried again as it is closed
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        except OSError as error:
            raise RunError(f"{run / LOCK}: cannot be written: {tell_refusal(error, run / LOCK)}") from error
        yield


def require_writable(run: Path) -> None:
    """Try to write in a run's folder; what had to be made for that is removed again.

    Raises:
        RunError: it cannot be written; says why.
    """
    try:
        missing = [path for path in (run, *run.parents) if not os.path.exists(path)]
        run.mkdir(parents=True, exist_ok=True)
        try:
            with temporary_name(run / LOCK) as temporary:
                temporary.write_text("?")
        finally:
            for path in missing:
                with suppress(OSError):
                    path.rmdir()
    except OSError as error:
        raise RunError(f"{run}: cannot be written: {tell_refusal(error, run / LOCK)}") from error
