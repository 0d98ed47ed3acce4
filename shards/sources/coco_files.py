"""The files of a data set in the format of COCO, and its json of instances.

Images are in a folder train2014, val2014, train2017 or val2017, or in a zip of that name; the annotations are
instances_train2014.json and so on, anywhere below a root or in annotations_trainval2014.zip.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from shards.files import appearing
from shards.schema import DataError
from shards.sources.archives import Blob, is_archive, list_archive, list_folder, list_roots
from shards.sources.names import IMAGE_ENDINGS, Names, check_one_row_each, plain
from shards.sources.text import json_of, shown

IMAGE_FOLDER = re.compile(r"(train|val)20\d\d")
ANNOTATIONS = re.compile(r"instances_((?:train|val)20\d\d)\.json")
ARCHIVE_NAMES = re.compile(r"(train|val)20\d\d|annotations", re.IGNORECASE)


def is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


NEEDED: Mapping[str, Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "images": {
        "id": (is_id, "a whole number or text"),
        "file_name": (is_name, "a path"),
        "height": (is_side, "a whole number of pixels"),
        "width": (is_side, "a whole number of pixels"),
    },
    "categories": {"id": (is_id, "a whole number or text"), "name": (is_name, "text")},
    "annotations": {
        "id": (is_id, "a whole number or text"),
        "image_id": (is_id, "the id of an image"),
        "category_id": (is_id, "the id of a category"),
        "segmentation": (lambda value: True, ""),
    },
}
OF_REGIONS = ("height", "width", "segmentation")


@dataclass(frozen=True, kw_only=True)
class Files:
    """The files that were found, by names such as train2014: the annotations, and {file name: image}."""

    annotations: Mapping[str, Blob]
    images: Mapping[str, Mapping[str, Blob]]


def find_files(roots: Sequence[Path]) -> Files:
    """Search folders (with the archives in them that have COCO's names) and archives. Folders come first.

    Raises:
        DataError: a root is missing, or two folders hold the same file.
    """
    annotations: dict[str, Blob] = {}
    images: dict[str, dict[str, Blob]] = {}
    folders, archives = list_roots(roots, ARCHIVE_NAMES)
    for files in folders:
        for place, name, blob in of_coco(files):
            known = annotations if name == "" else images.setdefault(place, {})
            other = known.setdefault(name or place, blob)
            if other != blob:
                raise DataError(f"{place}: the same file occurs twice: {other} and {blob}; name one with --root")
    for archive in archives:
        for place, name, blob in of_coco(list_archive(archive)):
            known = annotations if name == "" else images.setdefault(place, {})
            known.setdefault(name or place, blob)
    return Files(annotations=annotations, images=images)


def of_coco(files: Mapping[str, Blob]) -> Iterable[tuple[str, str, Blob]]:
    """(train2014 or similar, file name, file) of each image and of the annotations, whose file name is ""."""
    for path, blob in files.items():
        folder, _, name = path.rpartition("/")
        place = folder.rpartition("/")[2]
        found = ANNOTATIONS.fullmatch(name)
        if found:
            yield found[1], "", blob
        elif IMAGE_FOLDER.fullmatch(place) and name.lower().endswith(IMAGE_ENDINGS):
            yield place, name, blob


def list_images(place: Path) -> dict[str, Blob]:
    """{path below it: image} of a folder or an archive of any name. Raises DataError if it does not exist."""
    files = list_archive(place) if is_archive(place) else list_folder(place)
    below = {path.partition("/")[2]: blob for path, blob in files.items()}
    return {path: blob for path, blob in below.items() if path.lower().endswith(IMAGE_ENDINGS)}


def files_of(rows: Sequence[Mapping[str, Any]], images: Mapping[str, Blob], where: str) -> list[Blob]:
    """The file of each image of a json: by its full path, or by the end of a path if only one file has that.

    Raises:
        DataError: a file is missing, a name may mean two files, or two images have the same file.
    """
    names = Names(images, "the images", anywhere=True)
    found = [names.find(row["file_name"], f"{where}: image {row['id']}") for row in rows]
    missing = [row["file_name"] for row, path in zip(rows, found, strict=True) if path is None]
    if missing:
        raise DataError(
            f"{where}: {len(missing)} of {len(rows)} images are missing, first '{missing[0]}' (of {len(images)} files; "
            "folders in a name count)"
        )
    paths = [path for path in found if path is not None]
    check_one_row_each(zip((f"image {row['id']}" for row in rows), paths, strict=True), where, "file")
    return [images[path] for path in paths]


def read_json(blob: Blob) -> dict[str, list[dict[str, Any]]]:
    """A json of instances, with the columns that are needed.

    Raises:
        DataError: anything else, a value of a wrong kind, two rows with the same id, or two categories with the same
            name.
    """
    content = json_of(blob.read(), str(blob))
    check_instances(content, str(blob))
    return content


def is_instances(content: Any) -> bool:
    """Whether a json's content looks like one of instances, valid or not."""
    return isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys()


def check_instances(content: Any, where: str, *, regions: bool = True) -> None:
    """Raise DataError unless the content of a json has the columns that are needed, see read_json.

    Args:
        regions: False = only what image labels need, so neither sizes nor segmentations.
    """
    for name, of_name in NEEDED.items():
        needed = of_name if regions else {key: about for key, about in of_name.items() if key not in OF_REGIONS}
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise DataError(f"{where}: no list '{name}'; wanted a json of instances, such as instances_train2014.json")
        for number, row in enumerate(content[name]):
            if not isinstance(row, dict):
                raise DataError(f"{where}: {name}[{number}] is {shown(row)}; wanted an object with {', '.join(needed)}")
            lacking = [key for key in needed if key not in row]
            if lacking:
                raise DataError(f"{where}: {name}[{number}] lacks {', '.join(lacking)}; it has {sorted(row)}")
            for key, (is_right, wanted) in needed.items():
                if not is_right(row[key]):
                    raise DataError(
                        f"{where}: {name}[{number}] (id {shown(row['id'])}): {key} is {shown(row[key])}; "
                        f"wanted {wanted}"
                    )
        for key in ("id", "name") if name == "categories" else ("id",):
            check_one_each([row[key] for row in content[name]], f"{where}: two of its {name} have one {key}")
    for image in content["images"] if regions else ():
        if image["height"] * image["width"] > 2 * (Image.MAX_IMAGE_PIXELS or math.inf):
            raise DataError(
                f"{where}: image {image['id']} is listed with {image['height']} x {image['width']} pixels, a size that "
                "cannot be read: correct its height and width"
            )


def check_one_each(values: Sequence[Any], message: str) -> None:
    seen: set[Any] = set()
    for value in values:
        form = plain(value) if isinstance(value, str) else value
        if form in seen:
            raise DataError(f"{message}: {shown(value)}")
        seen.add(form)


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """Write a line of json per row; returns (offset, size) of each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    spans: list[tuple[int, int]] = []
    at = 0
    with appearing(path) as temporary, temporary.open("wb") as file:
        for row in rows:
            line = json.dumps(row, separators=(",", ":")).encode() + b"\n"
            spans.append((at, len(line)))
            at += file.write(line)
    return spans
