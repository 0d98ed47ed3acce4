"""Output that ends nothing: where the terminal is gone, `tee` is dead or the disk under the log is full, it is lost."""

import contextlib
import io
import os
import select
import sys
from typing import Any

BUSY_S = 5.0  # that a pipe which takes nothing just now is waited for, where writing to it does not wait by itself


class Lossy(io.RawIOBase):
    """A file descriptor to which writing always succeeds; what it does not take is dropped, the next is tried again.

    Attributes:
        error: the last one.
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
    """From now on nothing that is printed to stdout or stderr can end this process; doing it twice changes nothing."""
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if stream is None:  # it was closed before we were started
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
                )  # what ASCII has no sign for
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
