"""Image labels from annotations in VOC's format: a folder with one xml per image, which many tools write."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from shards.schema import DataError
from shards.sources.text import checked_rows, read_bytes, shown

ENDING = ".xml"


def read_annotations(folder: Path, label_column: str) -> dict[str, Any]:
    """{path of the xml below the folder, without its ending: row with the names of its objects, each once}.

    The image has the same path. The file name inside an xml is not read, since tools write paths of other machines
    there; neither are boxes. Difficult objects count like others. An xml without objects shows none of the classes.

    Raises:
        DataError: no xml in the folder, or a file that is not xml, declares entities, is not an annotation or has an
            object without a name.
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
    """The names of an annotation's objects, each once, in order. Raises DataError as read_annotations does."""
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise DataError(f"{where}: declares entities; wanted an annotation like VOC's, without <!DOCTYPE ...>")
    try:
        tree = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{where}: not xml ({error})") from error
    if tree.tag != "annotation":
        raise DataError(f"{where}: is {shown(f'<{tree.tag}>')}; wanted <annotation>, as in VOC")
    names = [(one.findtext("name") or "").strip() for one in tree.findall("object")]
    if not all(names):
        raise DataError(f"{where}: object {names.index('') + 1} of {len(names)} has no name")
    return list(dict.fromkeys(names))
