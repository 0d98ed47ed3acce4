"""Images of any classes with image-level labels: a table, COCO's json, VOC's xml, or one folder per class.

    one column       labels: cat;dog      the names of an image's classes, `background` for none
    column by class  cat,dog: 1,0         one column for each name of --classes, 1 or 0
    json table       {path: [names]} or rows with a list in the column; an empty list means no class
    COCO's format    the categories of an image's annotations; a class that only a crowd shows is in no label
    VOC's format     a folder of xml      the names of an image's objects, including difficult ones
    folders          CLASS/x.jpg          the folder below the root is the class, `background` is none

Regions and boxes are not read. Labels are what the annotator wrote, not what a mask shows.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.index import INDEX_NAME, Index
from shards.schema import ClassSet, DataError
from shards.sources.archives import Exif, list_folder
from shards.sources.coco_files import check_instances, is_instances
from shards.sources.label_names import BACKGROUND, Empty, check_names, names_by_key, refuse_joined
from shards.sources.labelled import Labelled, read_labelled
from shards.sources.names import IMAGE_ENDINGS
from shards.sources.text import cell_of, json_of, names_of, read_bytes, read_rows, rows_of_json, select_rows, table_at
from shards.sources.voc_xml import read_annotations

ENDINGS = ", ".join(IMAGE_ENDINGS)
LABELS, GROUP = "labels", "group"  # columns


@dataclass(frozen=True, kw_only=True)
class Found:
    """What was read.

    Attributes:
        skipped: number of images with an empty label that were left out as asked.
        dropped: {class that was not asked for: number of images whose label named it}.
        grouped_by: what a group is, in words.
        others: files in the folders of classes without the ending of an image, which were left out.
    """

    source: Labelled
    skipped: int
    dropped: dict[str, int]
    grouped_by: str
    others: tuple[str, ...] = ()


def read_images(
    root: Path,
    labels: Path | None,
    *,
    classes: Sequence[str] | None = None,
    name: str = "own",
    split: str = "train",
    split_column: str | None = None,
    only: Path | None = None,
    image_folder: str = "",
    mask_folder: str = "masks",
    label_column: str = LABELS,
    separator: str = ";",
    group_column: str | None = None,
    group_pattern: str | None = None,
    empty: Empty = "refuse",
    drop_others: bool = False,
    exif: Exif = "keep",
    mask_values: str | None = None,
    frame_column: str | None = None,
) -> Found:
    """Read the image labels of any classes; paths are relative to `root`.

    Args:
        labels: a csv, a json table, a json of instances or a folder of VOC's xml; None = the folder of an image is its
            class.
        classes: in the order of their ids; None = the categories of a json of instances by their ids, else all names
            that occur, sorted.
        split, split_column, only: which rows are taken, see select_rows.
        group_column: column that names the video, scene or photograph; None = `group` if it exists.
        group_pattern: a regular expression whose first group, found in the key, is the group.
        empty: what an empty cell means; an empty list in a json means no class in any case.
        frame_column: column that numbers the frames of a group, which is then one clip.
        drop_others: leave names that are not in `classes` out of the labels instead of refusing them.

    Raises:
        DataError: a wrong file, column, label or group; names the row.
    """
    where = root if labels is None else table_at(root, labels, folders=True)
    others: tuple[str, ...] = ()
    if labels is None:
        rows, others = rows_of_folders(root, image_folder, mask_folder, label_column)
        known = None
    else:
        rows, known = read_file(where, label_column)
    rows = select_rows(rows, where, only=only and table_at(root, only), split=split, column=split_column)
    named, skipped = names_by_key(rows, str(where), classes, label_column, separator, empty)
    counts = Counter(one for _, found in named.values() for one in found)
    chosen = tuple(classes or known or sorted(counts))
    if not (classes or known):
        refuse_joined(counts, str(where))
    check_names(chosen, counts, str(where), drop_others=drop_others)
    ids = {one: number for number, one in enumerate(chosen, start=1)}
    group_of, grouped_by = choose_groups(rows, group_column, group_pattern)
    source = read_labelled(
        root,
        {key: row for key, (row, _) in named.items()},
        where,
        class_set=ClassSet(name=name, classes=chosen),
        label_of=lambda key, row, place: tuple(sorted(ids[one] for one in {*named[key][1]} if one in ids)),
        group_of=group_of,
        image_folder=image_folder,
        mask_folder=mask_folder,
        exif=exif,
        mask_values=mask_values,
        frame_column=frame_column,
    )
    dropped = {one: count for one, count in sorted(counts.items()) if one not in ids}
    return Found(source=source, skipped=skipped, dropped=dropped, grouped_by=grouped_by, others=others)


def rows_of_folders(
    root: Path, image_folder: str, mask_folder: str, label_column: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """({path below the image folder: row} of one folder per class, files in these folders without the ending of an
    image)."""
    base = root / image_folder
    paths = [path.partition("/")[2] for path in list_folder(base)]
    images = sorted(path for path in paths if path.lower().endswith(IMAGE_ENDINGS))
    if not image_folder and mask_folder:
        images = [path for path in images if not path.startswith(f"{mask_folder}/")]
    loose = [path for path in images if "/" not in path]
    if loose or not images:
        what = (
            f"{len(loose)} images are in no folder of a class, first {loose[0]}" if loose else f"no image ({ENDINGS})"
        )
        raise DataError(f"{base}: {what}; wanted CLASS/x.jpg, or labels in a table (--labels)")
    folders = {path.partition("/")[0] for path in images}
    if len(folders) == 1:
        raise DataError(
            f"{base}: all {len(images)} images are in the folder '{folders.pop()}'; wanted one folder for each class "
            f"(and '{BACKGROUND}' for images of none), or labels in a table (--labels)"
        )
    others = [path for path in paths if path.partition("/")[0] in folders and not path.lower().endswith(IMAGE_ENDINGS)]
    return {path: {label_column: [path.partition("/")[0]]} for path in images}, tuple(sorted(others))


def read_file(path: Path, label_column: str) -> tuple[dict[str, Any], tuple[str, ...] | None]:
    """({key: row}, classes if the file lists them) of a table, a json of instances or a folder of VOC's xml."""
    if path.is_dir():
        return read_annotations(path, label_column), None
    if path.suffix.lower() != ".json":
        return dict(read_rows(path)), None
    content = json_of(read_bytes(path), str(path))
    if is_instances(content):
        return read_instances(content, str(path), label_column)
    listed = isinstance(content, dict) and "items" not in content
    bare = {key: {label_column: row} for key, row in content.items() if not isinstance(row, dict)} if listed else {}
    return dict(rows_of_json({**content, **bare} if bare else content, str(path))), None


def read_instances(content: Any, where: str, label_column: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The images of a json of instances as rows with the names of their categories; regions are not read."""
    check_instances(content, where, regions=False)
    names = {one["id"]: one["name"] for one in content["categories"]}
    if len({type(one) for one in names}) > 1:
        raise DataError(f"{where}: some ids of its categories are numbers, some are text; wanted one kind")
    found: dict[Any, list[str]] = {image["id"]: [] for image in content["images"]}
    for one in content["annotations"]:
        if one["image_id"] not in found or one["category_id"] not in names:
            raise DataError(
                f"{where}: annotation {one['id']} is of image {one['image_id']} and category {one['category_id']}; "
                "one of them is not listed"
            )
        if not one.get("iscrowd", 0):
            found[one["image_id"]].append(names[one["category_id"]])
    rows = [{**image, "key": image["file_name"], label_column: found[image["id"]]} for image in content["images"]]
    return dict(rows_of_json(rows, where)), tuple(names[one] for one in sorted(names))


def choose_groups(
    rows: Mapping[str, Any], column: str | None, pattern: str | None
) -> tuple[Callable[[str, Any, str], str], str]:
    """A function (key, row, place for messages) -> group, and what a group is, in words."""
    if column is not None and pattern is not None:
        raise DataError("--group-column and --group-pattern both say what a group is; give one")
    if pattern is not None:
        form = compiled(pattern)

        def group_in(key: str, row: Any, place: str) -> str:
            match = form.search(key)
            if match is None or not match[1]:
                raise DataError(f"{place}: does not match '{pattern}' with a group; see --group-pattern")
            return match[1]

        return group_in, f"by the first group of '{pattern}' in its name"
    if column is not None or any(isinstance(row, dict) and GROUP in row for row in rows.values()):
        named = column or GROUP
        return lambda key, row, place: cell_of(row, named, place, "see --group-column"), f"by the column '{named}'"
    return lambda key, row, place: key, "each image is its own group"


def compiled(pattern: str) -> re.Pattern[str]:
    try:
        form = re.compile(pattern)
    except re.error as error:
        raise DataError(f"--group-pattern '{pattern}' is not a regular expression: {error}") from error
    if not form.groups:
        raise DataError(f"--group-pattern '{pattern}' has no group; put the part that names the scene in parentheses")
    return form


def parse_classes(text: str | None, out: Path) -> tuple[str, ...] | None:
    """The names of --classes: a file with one per line, or names separated by commas. Without the option, those of the
    splits that already exist in `out`, so that an id means the same class in all; None if there are none.

    Raises:
        DataError: no name, or a name twice.
    """
    if text is None:
        there = sorted(out.glob(f"[!.]*/{INDEX_NAME}"))
        return Index.load(there[0].parent).classes if there else None
    if Path(text).is_file():
        return tuple(names_of(read_bytes(Path(text)), text))
    return tuple(names_of("\n".join(text.split(",")).encode(), f"--classes {text}"))
