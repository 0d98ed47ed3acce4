"""Folders of smoke frames with a table of image labels: your own data, SMOKE5K, IJmond crops.

The table is a csv with a header, a json list of rows, or a json object {key: row} (bare or under "items").
A row needs a label and a group (its video or scene), and names its image: a path in `image`, or a key that is
the file's name without its ending in the image folder.
"""

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from shards.schema import SMOKE, ClassSet, DataError, Sample, decode_image, decode_mask, encode_image

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png")
SMOKE_WORDS = {"1": True, "true": True, "yes": True, "smoke": True, "0": False, "false": False, "no": False, "": False}


@dataclass(frozen=True, kw_only=True)
class Row:
    key: str
    image: Path
    smoke: bool
    group: str
    mask: Path | None


@dataclass(frozen=True, kw_only=True)
class SmokeImages:
    """Rows of a label table as a source of samples.

    Attributes:
        with_masks: read masks, for pixel shards. A frame labelled smoke-free needs no mask file.
    """

    rows: tuple[Row, ...]
    source: str
    with_masks: bool = False
    class_set: ClassSet = SMOKE

    def __len__(self) -> int:
        return len(self.rows)

    def groups(self) -> list[str]:
        return [row.group for row in self.rows]

    def __getitem__(self, index: int) -> Sample:
        row = self.rows[index]
        where = str(row.image)
        data = row.image.read_bytes()
        image_HW3 = decode_image(data, where)
        if not data.startswith(b"\xff\xd8"):  # not a JPEG: the one format that shards hold
            data = encode_image(image_HW3)
        mask = None
        if self.with_masks and row.mask is not None:
            mask = decode_mask(row.mask.read_bytes(), str(row.mask))
        elif self.with_masks:
            mask = np.zeros(image_HW3.shape[:2], dtype=np.uint8)
        return Sample(
            key=row.key,
            image=data,
            image_label=(1,) if row.smoke else (),
            group=row.group,
            source=self.source,
            mask=mask,
        )

    def hold_out(self, share: float) -> tuple["SmokeImages", "SmokeImages"]:
        """Split into (kept, held out) so that no group is in both.

        Groups are visited in a fixed pseudo-random order and held out whenever they still fit into
        `share` of the rows, so a group larger than that is always kept.

        Raises:
            DataError: no group is small enough to be held out.
        """
        groups, counts = np.unique(self.groups(), return_counts=True)
        room = share * len(self.rows)
        held: set[str] = set()
        for number in np.random.default_rng(0).permutation(len(groups)):
            if counts[number] <= room:
                held.add(str(groups[number]))
                room -= counts[number]
        if not held:
            raise DataError(f"cannot hold out {share:.0%} of {len(self.rows)} rows: every group is larger than that")
        kept = replace(self, rows=tuple(row for row in self.rows if row.group not in held))
        return kept, replace(self, rows=tuple(row for row in self.rows if row.group in held))


def read_table(
    root: Path,
    labels: Path,
    *,
    only: Path | None = None,
    image_folder: str = "images",
    mask_folder: str = "masks",
    label_column: str = "label",
    group_column: str = "group",
) -> SmokeImages:
    """Read a label table; paths are relative to `root`.

    Args:
        only: a text file of keys, one per line: the rows to take, in its order.

    Raises:
        DataError: a file is missing, a row lacks a column, a label is neither smoke nor not, a listed key is unknown.
    """
    labels = root / labels
    rows = dict(table_rows(labels))
    if only is not None:
        keys = [line.strip() for line in existing(root / only).read_text().splitlines() if line.strip()]
        unknown = [key for key in keys if key not in rows]
        if unknown:
            raise DataError(f"{root / only}: {len(unknown)} keys are not in {labels}, first '{unknown[0]}'")
        rows = {key: rows[key] for key in keys}
    read = []
    for key, fields in rows.items():
        where = f"{labels}: row '{key}'"
        for column in (label_column, group_column):
            if fields.get(column) is None:
                raise DataError(f"{where}: no '{column}'; it has {sorted(fields)}: see --label-column, --group-column")
        word = str(fields[label_column]).strip().lower()
        if word not in SMOKE_WORDS:
            raise DataError(f"{where}: label is '{fields[label_column]}'; wanted 1/true/yes/smoke or 0/false/no")
        smoke = SMOKE_WORDS[word]
        image = existing(root / fields["image"]) if fields.get("image") else find(root / image_folder, key, where)
        if fields.get("mask"):
            mask: Path | None = existing(root / fields["mask"])
        else:
            beside = root / mask_folder / f"{Path(key).stem}.png"
            mask = beside if beside.is_file() else None
        name = "_".join(Path(key).with_suffix("").parts).replace(".", "_").replace(" ", "_")
        read.append(Row(key=name, image=image, smoke=smoke, group=str(fields[group_column]), mask=mask))
    return SmokeImages(rows=tuple(read), source=labels.parent.name or str(labels))


def table_rows(path: Path) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """(key, columns) of each row of a csv or json table. A csv's key is its `key` column, else its `image`."""
    text = existing(path).read_text()
    if path.suffix.lower() != ".json":
        for number, row in enumerate(csv.DictReader(text.splitlines()), start=2):
            yield row.get("key") or row.get("image") or missing_key(f"{path}: line {number}", row), row
        return
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not json ({error})") from error
    if isinstance(content, dict):
        yield from content.get("items", content).items()
    else:
        for number, row in enumerate(content):
            yield row.get("key") or row.get("image") or missing_key(f"{path}: row {number}", row), row


def missing_key(where: str, row: Mapping[str, Any]) -> str:
    raise DataError(f"{where}: neither 'key' nor 'image' among its columns {sorted(map(str, row))}")


def find(folder: Path, key: str, where: str) -> Path:
    for ending in ("", *IMAGE_ENDINGS):
        path = folder / f"{key}{ending}"
        if path.is_file():
            return path
    raise DataError(f"{where}: no image {folder / key} with ending {', '.join(IMAGE_ENDINGS)}; see --image-folder")


def existing(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"{path}: file is missing")
    return path
