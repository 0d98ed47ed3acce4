"""Lines of JSON that a run writes while it goes on, and small files that are whole or absent. Knows no tracker."""

import fcntl
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from launcher.errors import RunError
from launcher.files import write_whole

HELD = 10_000  # lines kept in memory while the disk takes none
TAIL = 1 << 20  # bytes; more than any line


class Journal:
    """A file of JSON lines. Each has a `time` (Unix seconds) later than that of the line before, which so names it.

    A disk that takes no line costs a warning: lines wait in memory and are written with the next one.

    Args:
        floor: times are later than this one, whatever the clock says (a run may move to a machine that is behind).
    """

    def __init__(self, path: Path, *, floor: float = 0.0) -> None:
        self.path = path
        self.held: deque[str] = deque()
        self.lost = 0  # lines that found no place on the disk nor in memory
        lines = list(read_lines(path))
        self.last = max([floor, *(line["time"] for line in lines if "time" in line)])

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Drop the lines that are not wanted; the file is whole at every moment."""
        write_whole(self.path, "".join(json.dumps(line) + "\n" for line in read_lines(self.path) if wanted(line)))

    def append(self, line: dict[str, Any]) -> None:
        self.last = max(time.time(), self.last + 1e-3)
        self.held.append(json.dumps({"time": self.last, **line}) + "\n")
        self.flush()

    def flush(self) -> None:
        """Write what is held; what the disk does not take stays."""
        waited = len(self.held) > 1
        try:
            with self.path.open("ab+") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # a run may be evaluated while it is trained
                drop_torn_end(file)
                file.write("".join(self.held).encode())
            self.held.clear()
        except OSError as error:
            if not waited:
                warn(f"cannot write {self.path} ({error}); the run goes on, its lines wait in memory for a place")
            while len(self.held) > HELD:
                self.held.popleft()
                self.lost += 1


def drop_torn_end(file: IO[bytes]) -> None:
    """Cut what a killed process or a full disk left of a line after the last whole one."""
    size = file.seek(0, os.SEEK_END)
    start = max(0, size - TAIL)
    file.seek(start)
    tail = file.read()
    if not tail.endswith(b"\n"):
        file.truncate(start + tail.rfind(b"\n") + 1)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file, none if it is absent. A last line that a killed process left half written is dropped.

    Raises:
        RunError: any other line is not JSON.
    """
    return (line for line, _ in read_lines_from(path, 0))


def read_lines_from(path: Path, start: int) -> Iterator[tuple[dict[str, Any], int]]:
    """(line, byte at which the next begins) of a file that may grow meanwhile; `start` is where a line begins.

    Raises:
        RunError: a line that has its end is not JSON.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):  # not whole yet, or never
                return
            start += len(line)
            try:
                yield json.loads(line), start
            except ValueError as error:
                raise RunError(
                    f"{path}: the line that ends at byte {start} is no JSON ({error}): something changed it; fix "
                    "or remove this line"
                ) from error


def warn(message: str) -> None:
    """A line on stderr that leaves a progress bar whole."""
    tqdm.write(f"tracking: {message}", file=sys.stderr)
    sys.stderr.flush()
