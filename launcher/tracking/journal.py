"""Lines of JSON that a run writes, which survive kills and full disks. Knows no tracker."""

import errno
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from launcher.errors import RunError
from launcher.files import take_lock, write_whole
from launcher.progress import say

HELD = 10_000  # lines kept in memory while the disk accepts none
LOCK_WAIT_S = 10.0
TAIL = 1 << 20  # bytes; more than any line


class Journal:
    """A file of JSON lines. Each has a `time` (Unix seconds), later than that of the line before, which identifies it.

    If the disk accepts no line, there is a warning, and lines wait in memory until the next one is written.

    Args:
        floor: all times are later than this, whatever the clock says (a run may move to a machine that is behind).
    """

    def __init__(self, path: Path, *, floor: float = 0.0) -> None:
        self.path = path
        repair(path)
        self.held: deque[str] = deque()
        self.lost = 0  # number of lines that fitted neither on the disk nor in memory
        lines = list(read_lines(path))
        self.last = max([floor, *(line["time"] for line in lines if "time" in line)])

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Drop the lines that are not wanted; the file is complete at every moment."""
        write_whole(self.path, "".join(json.dumps(line) + "\n" for line in read_lines(self.path) if wanted(line)))

    def append(self, line: dict[str, Any]) -> None:
        self.last = max(time.time(), self.last + 1e-3)
        self.held.append(json.dumps({"time": self.last, **line}) + "\n")
        self.flush()

    def flush(self) -> None:
        """Write the lines in memory; those that the disk does not accept are kept."""
        waited = len(self.held) > 1
        try:
            with self.path.open("ab+") as file:
                # a run may be evaluated while it is trained; without locks, lines are still appended whole
                if take_lock(file.fileno(), wait_s=LOCK_WAIT_S) is False:
                    raise OSError(errno.EAGAIN, "another process holds its lock")
                drop_torn_end(file)
                file.write("".join(self.held).encode())
            self.held.clear()
        except OSError as error:
            if not waited:
                warn(
                    f"cannot write {self.path} ({error}); the run continues, its lines are kept in memory until they "
                    "can be written"
                )
            while len(self.held) > HELD:
                self.held.popleft()
                self.lost += 1


def drop_torn_end(file: IO[bytes]) -> None:
    """Cut off the incomplete last line that a killed process or a full disk left."""
    size = file.seek(0, os.SEEK_END)
    start = max(0, size - TAIL)
    file.seek(start)
    tail = file.read()
    if not tail.endswith(b"\n"):
        file.truncate(start + tail.rfind(b"\n") + 1)


def repair(path: Path) -> None:
    """Move whole lines that are not JSON objects, as a power cut leaves them, from a file to NAME.damaged."""
    if not path.is_file():
        return
    whole = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    damaged = [line for line in whole if not is_line(line)]
    if damaged:
        with path.with_name(f"{path.name}.damaged").open("ab") as file:
            file.writelines(damaged)
        write_whole(path, b"".join(line for line in whole if is_line(line)))
        warn(f"{path}: {len(damaged)} lines are not JSON; they were moved to {path.name}.damaged, the others stay")


def is_line(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file; none if it is absent. An incomplete last line, from a killed process, is dropped.

    Raises:
        RunError: any other line is not JSON.
    """
    return (line for line, _ in read_lines_from(path, 0))


def read_lines_from(path: Path, start: int) -> Iterator[tuple[dict[str, Any], int]]:
    """(line, byte at which the next begins) of a file that may grow meanwhile, from byte `start`, where a line begins.

    Raises:
        RunError: a complete line is not JSON.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):  # not complete yet, or never
                return
            start += len(line)
            try:
                yield json.loads(line), start
            except ValueError as error:
                raise RunError(
                    f"{path}: the line that ends at byte {start} is not JSON ({error}): something changed it; fix or "
                    "remove this line"
                ) from error


def warn(message: str) -> None:
    """Print a line on stderr without breaking a progress bar."""
    say(f"tracking: {message}", file=sys.stderr)
