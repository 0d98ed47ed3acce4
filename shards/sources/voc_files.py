"""The files of PASCAL VOC 2012 and SBD, in folders and archives of any layout.

They are recognised by their folder, which is the same in all distributions:

    JPEGImages/ID.jpg, SegmentationClass/ID.png      VOCtrainval_11-May-2012.tar, VOC2012test.tar (also .jpeg, .png)
    ImageSets/Segmentation/*.txt                     the same
    cls/ID.mat, train.txt and val.txt next to cls/   SBD: benchmark.tgz (Hariharan et al., 2011)
    SegmentationClassAug/ID.png                      both together, a widespread copy
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from shards.schema import DataError
from shards.sources.archives import COMPRESSED, Blob, list_archive, list_roots, repacked
from shards.sources.names import IMAGE_ENDINGS, Names, last_of, without_ending
from shards.sources.text import check_different, names_of

ARCHIVE_NAMES = re.compile(r"voc|sbd|benchmark|segmentationclass", re.IGNORECASE)
FOLDERS = {
    "JPEGImages": ("image", IMAGE_ENDINGS),
    "SegmentationClassAug": ("augmented mask", (".png",)),
    "SegmentationClass": ("mask", (".png",)),
    "cls": ("SBD mask", (".mat",)),
    "Annotations": ("annotation", (".xml",)),
}


@dataclass(frozen=True, kw_only=True)
class Files:
    """The files that were found: {kind: {image id or name of a list: file}}."""

    of_kind: Mapping[str, Mapping[str, Blob]]
    roots: tuple[Path, ...]
    repacked: tuple[Path, ...] = ()  # compressed archives, part of which was unpacked into the cache

    def __getitem__(self, kind: str) -> Mapping[str, Blob]:
        return self.of_kind.get(kind, {})

    def image_of(self, name: str, where: str) -> str | None:
        """The id of the image that a path means, preferably by its full path; None if there is none."""
        path = self.paths.find(name, where)
        return None if path is None else self.paths.files[path]

    @cached_property
    def paths(self) -> Names[str]:
        ids = {blob.member or blob.path: one for one, blob in self["image"].items()}
        return Names(ids, self.where, anywhere=True)

    @property
    def where(self) -> str:
        return ", ".join(map(str, self.roots))


def find_files(roots: Sequence[Path], cache: Path) -> Files:
    """Search folders (with the archives in them whose names mention VOC or SBD) and archives.

    Unpacked files come before archives, and archives are used in the order of their names.

    Args:
        cache: folder that gets SBD's masks as a plain tar if they come in a compressed one.

    Raises:
        DataError: a root is missing, or two folders hold the same file.
    """
    found: dict[str, dict[str, Blob]] = {}
    folders, archives = list_roots(roots, ARCHIVE_NAMES)
    for files in folders:
        for kind, name, blob in of_voc(files):
            other = found.setdefault(kind, {}).setdefault(name, blob)
            if other != blob:
                raise DataError(f"{kind} '{name}' occurs twice: {other} and {blob}; name one folder with --root")
    unpacked = [path for path in archives if path.name.lower().endswith(COMPRESSED)]
    for archive in archives:
        plain = repacked(archive, is_small, cache) if archive in unpacked else archive
        of_archive: dict[tuple[str, str], Blob] = {}
        for kind, name, blob in of_voc(list_archive(plain)):
            other = of_archive.setdefault((kind, name), blob)
            if other != blob and kind == "image":
                raise DataError(f"{kind} '{name}' occurs twice: {other} and {blob}; remove one")
            found.setdefault(kind, {}).setdefault(name, blob)
    return Files(of_kind=found, roots=tuple(roots), repacked=tuple(unpacked))


def is_small(name: str) -> bool:
    """Whether it is a mask or a list. Only these are unpacked from a compressed archive; its images are VOC's own."""
    return name.endswith((".mat", ".png", ".txt"))


def of_voc(files: Mapping[str, Blob]) -> Iterable[tuple[str, str, Blob]]:
    """(kind, id or name, file) of the files that are used; folders of other years are not."""
    beside_cls = {name.rpartition("/cls/")[0] for name in files if "/cls/" in name and name.endswith(".mat")}
    for name, blob in files.items():
        folder, _, file = name.rpartition("/")
        stem, dot, ending = unicodedata.normalize("NFC", file).rpartition(".")
        if any(re.fullmatch(r"VOC20\d\d", part) and part != "VOC2012" for part in folder.split("/")):
            continue
        kind, endings = FOLDERS.get(folder.rpartition("/")[2], ("", ()))
        if dot + ending.lower() in endings:
            yield kind, stem, blob
        elif ending == "txt" and folder.endswith("ImageSets/Segmentation"):
            yield "list", stem, blob
        elif ending == "txt" and folder in beside_cls:
            yield "SBD list", stem, blob


def read_list(blob: Blob, files: Files) -> list[str]:
    """The ids of a list, one per line: an id, an image's path, or the paths of an image and its mask.

    Raises:
        DataError: not text, no line, an image twice, or an image with another one's mask.
    """
    ids = [id_of(line, files, str(blob)) for line in names_of(blob.read(), str(blob))]
    check_different(ids, str(blob))
    return ids


def id_of(line: str, files: Files, where: str) -> str:
    """The id that a line means; the line itself if there is no such image. A blank separates two paths or is part of a
    name."""
    images = files["image"]
    for kind in ("image", "SBD mask"):  # SBD's lists may be there without its images
        if (name := unicodedata.normalize("NFC", line)) in files[kind]:
            return name
    found = files.image_of(line, where)
    if found is not None:
        return found
    image, *rest = line.split()
    found = files.image_of(image, where) if len(rest) == 1 else None
    if found is None:
        return name
    mask = without_ending(last_of(unicodedata.normalize("NFC", rest[0])))
    is_mask = any(mask in files[kind] for kind in ("augmented mask", "mask"))
    if mask != found and (is_mask or mask in images):
        raise DataError(
            f"{where}: '{line}' pairs the image '{found}' with the mask of '{mask}'; wanted the same id for both"
        )
    return found if is_mask else name
