"""Folders of smoke frames with a table of image labels: your own data, SMOKE5K, IJmond crops.

The table is a csv with a header, a json list of rows, or a json object {key: row} (bare or under "items").
A row needs a label and a group (its video or scene), and names its image: a path in `image`, or a key that is
the file's path in the image folder, with or without its ending.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from shards.schema import SMOKE, ClassSet, DataError, Sample, decode_mask, header_of
from shards.sources.archives import Blob, Exif
from shards.sources.names import check_one_row_each, keys_of, plain
from shards.sources.smoke_files import Folders
from shards.sources.text import cell_of, names_of, read_bytes, read_rows, shown

SMOKE_WORDS = {"1": True, "true": True, "yes": True, "smoke": True, "0": False, "false": False, "no": False}


@dataclass(frozen=True, kw_only=True)
class Row:
    """`mask` is None where no file was found; `mask_place` then says where it was looked for."""

    key: str
    image: Path
    smoke: bool
    group: str
    mask: Path | None
    mask_place: str = ""


@dataclass(frozen=True, kw_only=True)
class SmokeImages:
    """Rows of a label table as a source of samples.

    Attributes:
        with_masks: read masks, for pixel shards. A frame labelled smoke-free needs no mask file.
        exif: what to do with images that are not upright, see Blob.read_jpeg.

    Raises:
        DataError: masks are wanted, and a frame labelled smoke has none.
    """

    rows: tuple[Row, ...]
    source: str
    with_masks: bool = False
    exif: Exif = "keep"
    class_set: ClassSet = SMOKE

    def __post_init__(self) -> None:
        lacking = [row for row in self.rows if row.smoke and row.mask is None] if self.with_masks else []
        if lacking:
            raise DataError(
                f"{self.source}: {len(lacking)} of {sum(row.smoke for row in self.rows)} frames labelled smoke have no "
                f"mask, first '{lacking[0].key}' (looked for {lacking[0].mask_place}); without one they would count as "
                "free of smoke: add masks, or write these frames label-only"
            )

    def __len__(self) -> int:
        return len(self.rows)

    def groups(self) -> list[str]:
        return [row.group for row in self.rows]

    def __getitem__(self, index: int) -> Sample:
        row = self.rows[index]
        image = Blob(str(row.image)).read_jpeg(exif=self.exif)
        mask = None
        if self.with_masks and row.mask is not None:
            mask = decode_mask(Blob(str(row.mask)).read(), str(row.mask))
        elif self.with_masks:
            mask = np.zeros(header_of(image, str(row.image))[0], dtype=np.uint8)
        return Sample(
            key=row.key,
            image=image,
            image_label=(1,) if row.smoke else (),
            group=row.group,
            source=self.source,
            mask=mask,
            mask_place=row.mask_place,
        )

    def hold_out(self, share: float) -> tuple["SmokeImages", "SmokeImages"]:
        """Split into (kept, held out) so that no group is in both, and both show smoke.

        Groups are visited in a fixed pseudo-random order and held out whenever they still fit into
        `share` of the rows, so a group larger than that is always kept. Where one side would have no frame with smoke,
        or none without although two groups have some, another group comes first.

        Raises:
            DataError: no group is small enough, or no choice of groups has smoke on both sides.
        """
        groups, counts = np.unique(self.groups(), return_counts=True)
        room = int(share * len(self.rows))
        if counts.min() > share * len(self.rows):
            raise DataError(f"cannot hold out {share:.0%} of {len(self.rows)} rows: every group is larger than that")
        order = np.random.default_rng(0).permutation(len(groups)).tolist()
        labels_of: dict[str, set[bool]] = {}
        for row in self.rows:
            labels_of.setdefault(row.group, set()).add(row.smoke)
        wanted = {label for label in (True, False) if sum(label in found for found in labels_of.values()) > 1}
        for first in ([], *([number] for number in order)):
            held: set[str] = set()
            left = share * len(self.rows)
            for number in [*first, *(one for one in order if one not in first)]:
                if counts[number] <= left:
                    held.add(str(groups[number]))
                    left -= counts[number]
            sides = (held, labels_of.keys() - held)
            if True in wanted and all(wanted <= set().union(*(labels_of[one] for one in side)) for side in sides):
                kept = replace(self, rows=tuple(row for row in self.rows if row.group not in held))
                return kept, replace(self, rows=tuple(row for row in self.rows if row.group in held))
        with_smoke = sum(True in found for found in labels_of.values())
        raise DataError(
            f"cannot hold out {share:.0%} of {len(self.rows)} rows: of {len(groups)} groups {with_smoke} show "
            f"smoke, and no choice of at most {room} rows leaves frames with and without smoke on both sides; hold "
            "out more, or write the held-out split from a list of your own (--list)"
        )


def read_table(
    root: Path,
    labels: Path,
    *,
    only: Path | None = None,
    image_folder: str = "images",
    mask_folder: str = "masks",
    label_column: str = "label",
    group_column: str = "group",
    exif: Exif = "keep",
) -> SmokeImages:
    """Read a label table; paths are relative to `root`.

    A mask is the path in the column `mask` (an empty cell: none), else MASK_FOLDER/PATH.png with the image's path below
    the image folder or below `root`, or MASK_FOLDER/NAME.png if no other image has that name.

    Args:
        only: a text file of keys, one per line: the rows to take, in its order.

    Raises:
        DataError: a file is missing, may be two or is another row's too; a row lacks a column or has an empty cell, a
            label is neither smoke nor not, a key is there twice, a listed key is unknown.
    """
    labels = root / labels
    rows = dict(read_rows(labels))
    if only is not None:
        same = {plain(key): key for key in rows}
        keys = [same.get(plain(name), name) for name in names_of(read_bytes(root / only), str(root / only))]
        unknown = [key for key in keys if key not in rows]
        if unknown:
            raise DataError(f"{root / only}: {len(unknown)} keys are not in {labels}, first '{unknown[0]}'")
        rows = {key: rows[key] for key in keys}
    folders = Folders(root, image_folder, mask_folder, rows)
    hint = "see --label-column, --group-column"
    read = []
    for (key, fields), name in zip(rows.items(), keys_of([*rows], str(labels)), strict=True):
        where = f"{labels}: row '{key}'"
        if not isinstance(fields, dict):
            raise DataError(f"{where}: is {shown(fields)}; wanted an object with '{label_column}' and '{group_column}'")
        word = cell_of(fields, label_column, where, hint).lower()
        if word not in SMOKE_WORDS:
            raise DataError(f"{where}: label is '{fields[label_column]}'; wanted 1/true/yes/smoke or 0/false/no")
        image, path = folders.image_of(key, fields, where)
        mask, place = folders.mask_of(path, fields, where)
        group = cell_of(fields, group_column, where, hint)
        read.append(Row(key=name, image=image, smoke=SMOKE_WORDS[word], group=group, mask=mask, mask_place=place))
    check_one_row_each(((key, row.image) for key, row in zip(rows, read, strict=True)), str(labels), "image")
    with_mask = [(key, row.mask) for key, row in zip(rows, read, strict=True) if row.mask is not None]
    check_one_row_each(with_mask, str(labels), "mask")
    return SmokeImages(rows=tuple(read), source=labels.parent.name or str(labels), exif=exif)
