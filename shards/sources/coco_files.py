"""Where the files of a data set in the format of COCO lie, and its json of instances.

Images lie in a folder train2014, val2014, train2017 or val2017, or in a zip of that name; the annotations are
instances_train2014.json and so on, anywhere below a root or in annotations_trainval2014.zip.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.files import appearing
from shards.schema import DataError
from shards.sources.archives import Blob, is_archive, list_archive, list_folder

IMAGES = (".jpg", ".jpeg", ".png")
IMAGE_FOLDER = re.compile(r"(train|val)20\d\d")
ANNOTATIONS = re.compile(r"instances_((?:train|val)20\d\d)\.json")
ARCHIVE_NAMES = re.compile(r"(train|val)20\d\d|annotations", re.IGNORECASE)
NEEDED = {
    "images": ("id", "file_name", "height", "width"),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id", "segmentation"),
}


@dataclass(frozen=True, kw_only=True)
class Files:
    """What was found, by names such as train2014: the annotations, and {file name: image}."""

    annotations: Mapping[str, Blob]
    images: Mapping[str, Mapping[str, Blob]]


def find_files(roots: Sequence[Path]) -> Files:
    """Search folders (with the archives in them that are named as COCO's) and archives. Folders come first.

    Raises:
        DataError: a root is missing, or two folders hold the same file.
    """
    annotations: dict[str, Blob] = {}
    images: dict[str, dict[str, Blob]] = {}
    archives = [root for root in roots if not root.is_dir() and is_archive(root)]
    for root in roots:
        if root in archives:
            continue
        files = list_folder(root)
        for place, name, blob in of_coco(files):
            known = annotations if name == "" else images.setdefault(place, {})
            other = known.setdefault(name or place, blob)
            if other != blob:
                raise DataError(f"{place}: the same file is there twice: {other} and {blob}; name one with --root")
        names = [Path(blob.path) for blob in files.values()]
        archives += sorted(path for path in names if is_archive(path) and ARCHIVE_NAMES.search(path.name))
    for archive in archives:
        for place, name, blob in of_coco(list_archive(archive)):
            known = annotations if name == "" else images.setdefault(place, {})
            known.setdefault(name or place, blob)
    return Files(annotations=annotations, images=images)


def of_coco(files: Mapping[str, Blob]) -> Iterable[tuple[str, str, Blob]]:
    """(train2014 or so, file name, file) of each image; the name of annotations is empty."""
    for path, blob in files.items():
        folder, _, name = path.rpartition("/")
        place = folder.rpartition("/")[2]
        found = ANNOTATIONS.fullmatch(name)
        if found:
            yield found[1], "", blob
        elif IMAGE_FOLDER.fullmatch(place) and name.lower().endswith(IMAGES):
            yield place, name, blob


def list_images(place: Path) -> dict[str, Blob]:
    """{file name: image} of a folder or an archive, whatever it is called.

    Raises:
        DataError: not there, or two images of one name.
    """
    images: dict[str, Blob] = {}
    for path, blob in (list_archive(place) if is_archive(place) else list_folder(place)).items():
        name = path.rpartition("/")[2]
        if name.lower().endswith(IMAGES) and images.setdefault(name, blob) != blob:
            raise DataError(f"{place}: two images are called '{name}': {images[name]} and {blob}; name one folder")
    return images


def read_json(blob: Blob) -> dict[str, list[dict[str, Any]]]:
    """A json of instances, with the columns that are needed.

    Raises:
        DataError: something else, or two images or categories with one id.
    """
    try:
        content = json.loads(blob.read())
    except ValueError as error:
        raise DataError(f"{blob}: not json ({error})") from error
    for name, needed in NEEDED.items():
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise DataError(f"{blob}: no list '{name}'; wanted a json of instances, such as instances_train2014.json")
        for number, row in enumerate(content[name]):
            lacking = [key for key in needed if key not in row]
            if lacking:
                raise DataError(f"{blob}: {name}[{number}] lacks {', '.join(lacking)}; it has {sorted(row)}")
        if len({row["id"] for row in content[name]}) < len(content[name]):
            raise DataError(f"{blob}: two of its {name} have one id")
    return content


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """Write a line of json per row; (offset, size) of each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    spans: list[tuple[int, int]] = []
    at = 0
    with appearing(path) as temporary, temporary.open("wb") as file:
        for row in rows:
            line = json.dumps(row, separators=(",", ":")).encode() + b"\n"
            spans.append((at, len(line)))
            at += file.write(line)
    return spans


def key_of(file_name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_\-]", "_", file_name.rpartition(".")[0])
