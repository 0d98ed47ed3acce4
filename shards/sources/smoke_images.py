"""Folders of smoke frames with a table of image labels, the case of one class in images.py: your own frames, SMOKE5K,
IJmond crops.

The table is a csv with a header, a json list of rows, or a json object {key: row} (bare or under "items"). A row needs
a label and a group (its video or scene), and names its image: a path in `image`, or a key that is the file's path in
the image folder, with or without its ending.
"""

from pathlib import Path
from typing import Any

from shards.schema import SMOKE, DataError
from shards.sources.archives import Exif
from shards.sources.labelled import Labelled, read_labelled
from shards.sources.text import cell_of, read_rows, select_rows, shown, table_at

SMOKE_WORDS = {"1": True, "true": True, "yes": True, "smoke": True, "0": False, "false": False, "no": False}


def read_table(
    root: Path,
    labels: Path,
    *,
    split: str = "train",
    split_column: str | None = None,
    only: Path | None = None,
    image_folder: str = "images",
    mask_folder: str = "masks",
    label_column: str = "label",
    group_column: str = "group",
    exif: Exif = "keep",
    mask_values: str | None = None,
    frame_column: str | None = None,
) -> Labelled:
    """Read a label table; paths of images, and of the table unless it is in the working folder, are relative to `root`.

    A mask is the path in the column `mask` (an empty cell: none), else MASK_FOLDER/PATH.png with the image's path below
    the image folder or below `root`, or MASK_FOLDER/NAME.png if no other image has that name.

    Args:
        split, split_column, only: which rows are taken, see select_rows.
        frame_column: column that numbers the frames of a group, which is then one clip.

    Raises:
        DataError: a file is missing, ambiguous, or also that of another row; a row lacks a column or has an empty cell,
            a label is neither smoke nor not, a key occurs twice, a listed key is unknown.
    """
    labels = table_at(root, labels)
    rows = dict(read_rows(labels))
    rows = select_rows(rows, labels, only=only and table_at(root, only), split=split, column=split_column)
    hint = "see --label-column, --group-column"

    def label_of(key: str, fields: Any, where: str) -> tuple[int, ...]:
        if not isinstance(fields, dict):
            raise DataError(f"{where}: is {shown(fields)}; wanted an object with '{label_column}' and '{group_column}'")
        word = cell_of(fields, label_column, where, hint).lower()
        if word not in SMOKE_WORDS:
            raise DataError(f"{where}: label is '{fields[label_column]}'; wanted 1/true/yes/smoke or 0/false/no")
        return (1,) if SMOKE_WORDS[word] else ()

    return read_labelled(
        root,
        rows,
        labels,
        class_set=SMOKE,
        label_of=label_of,
        group_of=lambda key, fields, where: cell_of(fields, group_column, where, hint),
        image_folder=image_folder,
        mask_folder=mask_folder,
        exif=exif,
        mask_values=mask_values,
        frame_column=frame_column,
    )
