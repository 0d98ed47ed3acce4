"""The folder of predictions: its settings, its files, and a row per finished frame. It is safe to kill at any time.

masks/KEY.png       class ids in the colours of PASCAL VOC; of a clip masks/KEY/000123.png
overlays/KEY.jpg    outlines; of a clip some stills overlays/KEY/000123.jpg
heat/KEY.jpg        with --heat
clips/KEY.mp4, clips/KEY.area.svg
frames.csv, contact_sheet.html, summary.json, failed.csv
job.json            the settings
.rows/              a line of JSON per finished frame, and the maps of unfinished clips
"""

import csv
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from launcher.errors import RunError
from launcher.files import appearing, set_aside, tell_refusal, write_whole
from launcher.jobs.output import JOB, open_output, read_made_of
from launcher.run.lock import LOCK
from launcher.tracking.journal import drop_torn_end, read_lines
from shards.image_bytes import decode_mask, encode_mask
from shards.schema import DataError

COLUMNS = (
    *("file", "frame", "time_s", "width", "height", "class", "probability", "area_px", "area_percent"),
    *("components", "boxes", "mean_score", "mask"),
)
FRAMES, FAILED, SUMMARY, SHEET = "frames.csv", "failed.csv", "summary.json", "contact_sheet.html"
CLIP = "clip-"  # followed by the key: the folder of a clip in .rows
PICTURES = ("masks", "overlays", "heat")
OURS = (*PICTURES, "clips", ".rows", FRAMES, FAILED, SUMMARY, SHEET, JOB)


class Failure(NamedTuple):
    """A file, or a frame of a clip, that could not be read."""

    file: str
    frame: str
    reason: str

    @staticmethod
    def of(path: Path, reason: str, frame: int | None = None) -> "Failure":
        """A failure whose reason says where."""
        where = str(path) if frame is None else f"{path}: frame {frame}"
        said = reason if str(path) in reason else f"{where}: {reason}" if frame is None else f"{where} {reason}"
        return Failure(str(path), "" if frame is None else str(frame), said)


class Folder:
    """OUT.

    Raises:
        RunError: it was made with other settings, or cannot be written.
    """

    def __init__(self, path: Path, made_of: dict[str, Any], *, overwrite: bool) -> None:
        self.path, self.rows = path, path / ".rows"
        if overwrite and read_made_of(path) is not None:
            self.clear()
        open_output(path, made_of, remedy="give another --out, or --overwrite")
        try:
            self.rows.mkdir(exist_ok=True)
        except OSError as error:
            raise RunError(f"{path}: cannot be written: {tell_refusal(error, path)}") from error
        for leftover in path.rglob(".*.tmp"):  # left by a killed process; the lock says that there is no other
            leftover.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove what prediction writes, and nothing else."""
        for path in (self.path / name for name in OURS):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def place(self, kind: str, name: str) -> Path:
        """The path of a picture of kind `masks`, `overlays` or `heat`."""
        return self.path / kind / f"{name}.{'png' if kind == 'masks' else 'jpg'}"

    def write(self, kind: str, name: str, data: bytes) -> None:
        path = self.place(kind, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)

    def refuse_twins(self, keys: Iterable[str]) -> None:
        """Raise RunError if the pictures of two keys would be one file, on a disk to which `A` and `a` are one name."""
        if not (self.path / JOB.upper()).exists():
            return
        first: dict[str, str] = {}
        for key in dict.fromkeys(keys):
            if (other := first.setdefault(key.lower(), key)) != key:
                raise RunError(
                    f"{self.path}: '{other}' and '{key}' would be one file on this disk, which takes large and small "
                    "letters for the same; rename one, or predict them into another --out"
                )

    def write_mask(self, name: str, mask_HW: np.ndarray) -> None:
        self.write("masks", name, encode_mask(mask_HW))

    def read_mask(self, name: str) -> np.ndarray | None:
        """The mask, or None if it is gone or damaged."""
        path = self.place("masks", name)
        try:
            return decode_mask(path.read_bytes(), str(path))
        except (OSError, DataError):
            return None

    def clips(self) -> dict[str, "Rows"]:
        """{key: rows} of all clips in this folder with at least one finished frame."""
        places = sorted(self.rows.glob(f"{CLIP}*"))
        found = {place.name.removeprefix(CLIP): Rows(place / "rows.jsonl") for place in places}
        return {key: rows for key, rows in found.items() if rows.count}

    def finish(self, journals: Sequence["Rows"], failures: Sequence[Failure]) -> None:
        """Write frames.csv, and failed.csv if anything failed."""
        with appearing(self.path / FRAMES) as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for row in (row for journal in journals for row in journal):
                writer.writerows([cell(name, {**row, **of_class}) for name in COLUMNS] for of_class in row["classes"])
        if not failures:
            (self.path / FAILED).unlink(missing_ok=True)
            return
        with appearing(self.path / FAILED) as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([Failure._fields, *failures])


def cell(name: str, row: Mapping[str, Any]) -> Any:
    """The cell of a column of frames.csv; boxes as `x0 y0 x1 y1; ...`."""
    if name == "boxes":
        return "; ".join(" ".join(map(str, box)) for box in row["boxes"])
    return row.get(name)


def refuse_foreign(path: Path) -> None:
    """Raise RunError if a folder holds anything but predictions, which might be lost among them or overwritten."""
    nobodys = (LOCK, ".DS_Store")  # which macOS leaves wherever one looks
    if path.is_dir() and not (path / JOB).is_file() and any(entry.name not in nobodys for entry in path.iterdir()):
        raise RunError(f"{path}: holds other things than predictions; give --out a folder of its own")


class Rows:
    """Lines of JSON, one per finished frame; of several with one key, the last counts.

    A line is appended when all pictures of its frame are written, so an interrupted frame is done again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.count = sum(1 for _ in read_lines(path))
        except RunError as error:  # a power cut
            set_aside(path, error)
            self.count = 0

    def append(self, row: Mapping[str, Any]) -> None:
        with self.path.open("ab+") as file:
            drop_torn_end(file)
            file.write(json.dumps(row).encode() + b"\n")
        self.count += 1

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return read_lines(self.path)


class ImageRows(Rows):
    """Rows of images, which may change and be predicted again.

    Attributes:
        newest: {key: (number of its line, stamp of its file)}, see stamp_of.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.newest = {row["key"]: (number, tuple(row["stamp"])) for number, row in enumerate(read_lines(path))}

    def has(self, key: str, stamp: tuple[int, int]) -> bool:
        return self.newest.get(key, (0, None))[1] == stamp

    def append(self, row: Mapping[str, Any]) -> None:
        self.newest[row["key"]] = (self.count, tuple(row["stamp"]))
        super().append(row)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number, row in enumerate(read_lines(self.path)):
            if self.newest[row["key"]][0] == number:
                yield row


def stamp_of(path: Path) -> tuple[int, int]:
    """Size in bytes and modification time of a file, which tell whether it is still the same; (0, 0) if it is gone."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns
