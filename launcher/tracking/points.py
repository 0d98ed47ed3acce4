"""Lines of RUN/metrics.jsonl as points for sinks, in groups that fit into one request."""

from collections.abc import Iterable, Iterator
from typing import Any

from launcher.tracking.sink import Point

BATCH = 1000  # points that are read and sent together; the maximum of MLflow for one request


def group_lines(lines: Iterable[tuple[dict[str, Any], int]]) -> Iterator[list[tuple[dict[str, Any], int]]]:
    """Groups of lines whose points fit into one request."""
    group: list[tuple[dict[str, Any], int]] = []
    points = 0
    for line, end in lines:
        if group and points + len(line) > BATCH:
            yield group
            group, points = [], 0
        group.append((line, end))
        points += len(line)
    if group:
        yield group


def read_points(line: dict[str, Any]) -> list[Point]:
    """The metrics of a line of metrics.jsonl."""
    return [
        Point(name, value, line["step"], line["time"]) for name, value in line.items() if name not in ("time", "step")
    ]
