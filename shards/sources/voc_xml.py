"""Image labels from annotations in the format of VOC: a folder with one xml per image, as many tools write them."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from shards.schema import DataError
from shards.sources.text import checked_rows, read_bytes, shown

ENDING = ".xml"


def read_annotations(folder: Path, label_column: str) -> dict[str, Any]:
    """{path of the xml below the folder, without its ending: row with the names of its objects, each once}.

    The image is the one of that path; what an xml says of its file is not read, for tools write other people's paths
    there. Nor are boxes, and difficult objects count like others. An xml without an object shows none of the classes.

    Raises:
        DataError: no xml, or one that is none, declares entities, is no annotation or has an object without a name.
    """
    found = (path for path in folder.rglob("*") if path.suffix.lower() == ENDING)
    files = sorted(path for path in found if not path.name.startswith("._"))  # twins of files, by macOS
    if not files:
        raise DataError(f"{folder}: holds no {ENDING}; wanted a table of labels, or VOC's annotations, one per image")
    rows = [
        (path.relative_to(folder).with_suffix("").as_posix(), {label_column: names_in(read_bytes(path), str(path))})
        for path in files
    ]
    return dict(checked_rows(rows, str(folder)))


def names_in(data: bytes, where: str) -> list[str]:
    """The names of an annotation's objects, each once, in their order. Raises DataError as read_annotations does."""
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise DataError(f"{where}: declares entities; wanted an annotation as VOC's, without <!DOCTYPE ...>")
    try:
        tree = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{where}: no xml ({error})") from error
    if tree.tag != "annotation":
        raise DataError(f"{where}: is {shown(f'<{tree.tag}>')}; wanted <annotation>, as VOC's")
    names = [(one.findtext("name") or "").strip() for one in tree.findall("object")]
    if not all(names):
        raise DataError(f"{where}: object {names.index('') + 1} of {len(names)} has no name")
    return list(dict.fromkeys(names))
