"""RUN/train.log: what the first process of a run printed, each line with its time. Never a reason for a run to end."""

import os
import shlex
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

LOG = "train.log"


class Tee:
    """A stream that also appends its complete lines to a file; in everything else it behaves like the stream.

    Of a line that is overwritten, such as a progress bar, the last state is kept."""

    def __init__(self, stream: Any, descriptor: int) -> None:
        self.stream, self.descriptor, self.begun = stream, descriptor, ""

    def write(self, text: str) -> int:
        *lines, self.begun = (self.begun + text).split("\n")
        self.begun = self.begun[self.begun.rfind("\r") + 1 :]
        for line in lines:
            write_line(self.descriptor, line.rstrip("\r").rpartition("\r")[2].rstrip())
        return self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def write_line(descriptor: int, line: str) -> None:
    """Append a line with its time; what the disk does not take is lost."""
    if line:
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        with suppress(OSError, ValueError):
            os.write(descriptor, f"{now} {line}\n".encode(errors="replace"))


@contextmanager
def keep_log(run: Path) -> Iterator[None]:
    """Context in which everything printed to stdout and stderr also goes to RUN/train.log, as does the error that ends
    it."""
    try:
        descriptor = os.open(run / LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    except OSError as error:
        print(f"{run / LOG}: cannot be written ({error}); the run continues without it", file=sys.stderr)
        yield
        return
    shown = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (Tee(stream, descriptor) for stream in shown)
    write_line(descriptor, f"--- {shlex.join(sys.argv)}")
    try:
        yield
    except BaseException:
        for line in traceback.format_exc().splitlines():
            write_line(descriptor, line)
        raise
    finally:
        sys.stdout, sys.stderr = shown
        os.close(descriptor)
