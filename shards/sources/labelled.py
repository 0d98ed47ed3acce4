"""Rows of images with image-level labels, groups and, for evaluation, masks, as a source of samples."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from shards.image_bytes import header_of
from shards.schema import ClassSet, DataError, Frame, Sample
from shards.sources.archives import Blob, Exif, digest_of, digest_of_text
from shards.sources.mask_values import parse_mask_values, read_mask
from shards.sources.names import check_one_row_each, keys_of
from shards.sources.smoke_files import Folders
from shards.sources.text import cell_of

NONE = 0  # "no class at all", beside the class ids 1..K


@dataclass(frozen=True, kw_only=True)
class Row:
    """`image_label` are class ids 1..K, sorted. `mask` is None if no file was found; `mask_place` then says where we
    looked for it."""

    key: str
    image: Path
    image_label: tuple[int, ...]
    group: str
    mask: Path | None
    mask_place: str = ""
    frame: Frame | None = None

    @property
    def shows(self) -> set[int]:
        """The classes of the label, or {NONE} without classes."""
        return {*self.image_label} or {NONE}

    @property
    def lacks_mask(self) -> bool:
        """Whether it shows a class but has no mask, so that in pixel shards it would show nothing."""
        return bool(self.image_label) and self.mask is None


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Rows of a label table as a source of samples.

    Attributes:
        with_masks: read masks, for pixel shards. An image without a class needs no mask file.
        exif: what to do with images that are not upright, see Blob.read_jpeg.
        mask_values: {grey level of a mask: class id}; None = its grey levels are class ids.

    Raises:
        DataError: masks are wanted, but an image with a class has none.
    """

    rows: tuple[Row, ...]
    source: str
    class_set: ClassSet
    with_masks: bool = False
    exif: Exif = "keep"
    mask_values: Mapping[int, int] | None = None

    def __post_init__(self) -> None:
        if self.with_masks and (lacking := self.lacking):
            raise DataError(
                f"{self.source}: {len(lacking)} of {sum(bool(row.image_label) for row in self.rows)} frames labelled "
                f"{self.any_class} have no mask, first '{lacking[0].key}' (looked for {lacking[0].mask_place}); "
                "without one they would count as background: add masks, leave such frames out (--skip-unmasked), or "
                "write them label-only"
            )

    @property
    def any_class(self) -> str:
        """How texts name the class, or any of several."""
        return self.class_set.classes[0] if self.class_set.num_fg_classes == 1 else "with a class"

    @property
    def has_masks(self) -> bool:
        """Whether any of these images has a mask."""
        return any(row.mask is not None for row in self.rows)

    @property
    def lacking(self) -> list[Row]:
        """The rows with a class but without a mask."""
        return [row for row in self.rows if row.lacks_mask]

    def __len__(self) -> int:
        return len(self.rows)

    def groups(self) -> list[str]:
        return [row.group for row in self.rows]

    def identity(self) -> dict[str, Any]:
        masks = [row.mask for row in self.rows if row.mask is not None] if self.with_masks else []
        return {
            "name": self.source,
            "exif": self.exif,
            "mask_values": sorted((self.mask_values or {}).items()),
            "rows": digest_of_text(
                repr((row.key, row.image_label, row.group, row.frame, row.mask is None)) for row in self.rows
            ),
            "images": digest_of(Blob(str(row.image)) for row in self.rows),
            "masks": digest_of(Blob(str(mask)) for mask in masks),
        }

    def __getitem__(self, index: int) -> Sample:
        row = self.rows[index]
        image = Blob(str(row.image)).read_jpeg(exif=self.exif)
        mask = None
        if self.with_masks and row.mask is not None:
            mask = read_mask(Blob(str(row.mask)).read(), str(row.mask), self.mask_values)
        elif self.with_masks:
            mask = np.zeros(header_of(image, str(row.image))[0], dtype=np.uint8)
        return Sample(
            key=row.key,
            image=image,
            image_label=row.image_label,
            group=row.group,
            source=self.source,
            frame=row.frame,
            mask=mask,
            mask_place=row.mask_place,
        )

    def take(self, groups: set[str]) -> "Labelled":
        """The rows of these groups."""
        return replace(self, rows=tuple(row for row in self.rows if row.group in groups))

    def without_lacking(self) -> "Labelled":
        """The rows that pixel shards can hold.

        Raises:
            DataError: no row with a class is left.
        """
        rows = tuple(row for row in self.rows if not row.lacks_mask)
        if self.lacking and not any(row.image_label for row in rows):
            raise DataError(
                f"{self.source}: none of the {len(self.lacking)} frames labelled {self.any_class} has a mask, first "
                f"'{self.lacking[0].key}' (looked for {self.lacking[0].mask_place}); add some, or leave --masks out"
            )
        return replace(self, rows=rows)


def read_labelled(
    root: Path,
    rows: Mapping[str, Any],
    where: Path,
    *,
    class_set: ClassSet,
    label_of: Callable[[str, Any, str], tuple[int, ...]],
    group_of: Callable[[str, Any, str], str],
    image_folder: str,
    mask_folder: str,
    exif: Exif,
    mask_values: str | None = None,
    frame_column: str | None = None,
) -> Labelled:
    """Find the image and the mask of every row, see Folders.

    Args:
        rows: {key: {column: cell}} of a table.
        where: the table, for messages; its folder names the source.
        mask_values: see parse_mask_values.
        label_of, group_of: (key, row, place for messages) -> class ids, group.
        frame_column: column that numbers the frames of a group, which is then one clip; None = no clips.

    Raises:
        DataError: a file is missing, ambiguous, or also that of another row; or what the two functions raise.
    """
    values = parse_mask_values(mask_values, class_set)
    folders = Folders(root, image_folder, mask_folder, rows)
    read: list[Row] = []
    seen: dict[Frame, str] = {}
    without_image: list[DataError] = []
    for (key, fields), name in zip(rows.items(), keys_of([*rows], str(where)), strict=True):
        place = f"{where}: row '{key}'"
        image_label = label_of(key, fields, place)
        try:
            image, path = folders.image_of(key, fields, place)
        except DataError as error:
            without_image.append(error)
            continue
        mask, mask_place = folders.mask_of(path, fields, place)
        group = group_of(key, fields, place)
        row = Row(key=name, image=image, image_label=image_label, group=group, mask=mask, mask_place=mask_place)
        if frame_column is not None:
            frame = Frame(group, frame_number(fields, frame_column, place))
            if (first := seen.setdefault(frame, key)) != key:
                raise DataError(
                    f"{place}: frame {frame.number} of '{group}' is already in row '{first}'; give each clip its own "
                    "group, or continue the numbering"
                )
            row = replace(row, frame=frame)
        read.append(row)
    if without_image:
        more = len(without_image) - 1
        raise DataError(f"{without_image[0]}{f' (and so {more} more of {len(rows)} rows)' if more else ''}")
    if seen and len({frame.clip for frame in seen}) == len(seen):
        raise DataError(
            f"{where}: --frame-column {frame_column} numbers the frames of a clip, which is a group, and no group has "
            "two rows: name the column of the groups (--group-column)"
        )
    check_one_row_each(((key, row.image) for key, row in zip(rows, read, strict=True)), str(where), "image")
    with_mask = [(key, row.mask) for key, row in zip(rows, read, strict=True) if row.mask is not None]
    check_one_row_each(with_mask, str(where), "mask")
    return Labelled(
        rows=tuple(read),
        source=where.parent.name or str(where),
        class_set=class_set,
        exif=exif,
        mask_values=values,
    )


def frame_number(fields: Any, column: str, where: str) -> int:
    """The cell of a frame's number in its clip; raises DataError unless it is a whole number."""
    cell = cell_of(fields, column, where, "see --frame-column")
    if not re.fullmatch(r"[+-]?\d{1,18}", cell):  # int takes 1_000 as well
        raise DataError(f"{where}: '{column}' is '{cell}'; wanted the number of the frame in its clip")
    return int(cell)
