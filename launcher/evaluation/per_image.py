"""per_image.csv: a source's values for every image; two runs compared image by image."""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from launcher.files import appearing
from wsss.metrics.counts import bootstrap_interval

PER_IMAGE = "per_image.csv"
Images = Mapping[str, tuple[str, float]]  # {key: (group, value)}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a table whose header names the columns of all rows."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with appearing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=names)
        writer.writeheader()
        writer.writerows(rows)


def read_rows(run: Path, source: str) -> Iterator[dict[str, str]]:
    """The rows of a source; none if the run has no table."""
    if (run / PER_IMAGE).is_file():
        with (run / PER_IMAGE).open(newline="") as file:
            yield from (row for row in csv.DictReader(file) if row["source"] == source)


def read_ious(run: Path, source: str, choice: str) -> dict[str, tuple[str, float]]:
    """{key: (group, IoU)} of the images that show a class."""
    return {
        row["key"]: (row["group"], float(row[f"iou_{choice}"]))
        for row in read_rows(run, source)
        if row.get(f"iou_{choice}")
    }


def compare_images(ours: Images, theirs: Images) -> tuple[float, float, float] | None:
    """Mean difference on the images that both have, with the low and high end of its 95 % bootstrap interval over
    groups; None without shared images."""
    keys = [key for key in ours if key in theirs]
    if not keys:
        return None
    gaps = np.array([ours[key][1] - theirs[key][1] for key in keys])
    low, high = bootstrap_interval(gaps, [ours[key][0] for key in keys])
    return float(gaps.mean()), low, high
