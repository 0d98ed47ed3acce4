"""Output that cannot end a program: if the terminal or `tee` is gone, or the log's disk is full, it is lost instead."""

import contextlib
import io
import os
import select
import sys
from typing import Any

BUSY_S = 5.0  # how long to wait for a full pipe in non-blocking mode


class Lossy(io.RawIOBase):
    """A file descriptor to which writing always succeeds: what it does not accept is dropped, and later writes are
    tried again.

    Attributes:
        error: the last error.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.descriptor = descriptor
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            try:
                return os.write(self.descriptor, data)
            except BlockingIOError:
                select.select([], [self.descriptor], [], BUSY_S)
                return os.write(self.descriptor, data)
        except OSError as error:
            self.error = error
            return len(data)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.descriptor

    def isatty(self) -> bool:
        return os.isatty(self.descriptor)


def outlive_output() -> None:
    """From now on, printing to stdout or stderr cannot end this process; a second call changes nothing."""
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if stream is None:  # it was closed before this process started
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif raw_of(stream) is None:
            with contextlib.suppress(OSError, ValueError, AttributeError):  # no descriptor: text in memory
                descriptor = stream.fileno()
                with contextlib.suppress(OSError):
                    stream.flush()
                lossy: Any = io.BufferedWriter(Lossy(descriptor))
                options = {key: getattr(stream, key) for key in ("line_buffering", "write_through")}
                errors = (
                    "backslashreplace" if stream.errors == "strict" else stream.errors
                )  # for characters that are not ASCII
                setattr(sys, name, io.TextIOWrapper(lossy, stream.encoding, errors, **options))


def raw_of(stream: Any) -> Lossy | None:
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw if isinstance(raw, Lossy) else None


def lost_output() -> OSError | None:
    """Why some of stdout was lost; None if nothing was."""
    raw = raw_of(sys.stdout)
    if raw is not None:
        sys.stdout.flush()
    return raw.error if raw is not None else None
