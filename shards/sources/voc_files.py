"""Where the files of PASCAL VOC 2012 and SBD lie, in folders and archives of any layout.

They are recognised by the folder that they lie in, which is the same in all distributions:

    JPEGImages/ID.jpg, SegmentationClass/ID.png      VOCtrainval_11-May-2012.tar, VOC2012test.tar
    ImageSets/Segmentation/*.txt                     the same
    cls/ID.mat, train.txt and val.txt next to cls/   SBD: benchmark.tgz (Hariharan et al., 2011)
    SegmentationClassAug/ID.png                      both in one, as it is passed around
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.schema import DataError
from shards.sources.archives import COMPRESSED, Blob, is_archive, list_archive, list_folder, repacked

ARCHIVE_NAMES = re.compile(r"voc|sbd|benchmark|segmentationclass", re.IGNORECASE)
FOLDERS = {
    "JPEGImages": ("image", (".jpg", ".jpeg")),
    "SegmentationClassAug": ("augmented mask", (".png",)),
    "SegmentationClass": ("mask", (".png",)),
    "cls": ("SBD mask", (".mat",)),
}


@dataclass(frozen=True, kw_only=True)
class Files:
    """What was found: {kind: {image id or name of a list: file}}."""

    of_kind: Mapping[str, Mapping[str, Blob]]
    roots: tuple[Path, ...]
    repacked: tuple[Path, ...] = ()  # compressed archives of which a part was unpacked into the cache

    def __getitem__(self, kind: str) -> Mapping[str, Blob]:
        return self.of_kind.get(kind, {})

    @property
    def where(self) -> str:
        return ", ".join(map(str, self.roots))


def find_files(roots: Sequence[Path], cache: Path) -> Files:
    """Search folders (with the archives in them whose name speaks of VOC or SBD) and archives.

    Unpacked files come before archives, and archives count in the order of their names.

    Args:
        cache: folder that gets SBD's masks as a plain tar if they come in a compressed one.

    Raises:
        DataError: a root is missing, or two folders hold the same file.
    """
    found: dict[str, dict[str, Blob]] = {}
    archives = [root for root in roots if not root.is_dir() and is_archive(root)]
    for root in roots:
        if root in archives:
            continue
        files = list_folder(root)
        for kind, name, blob in of_voc(files):
            other = found.setdefault(kind, {}).setdefault(name, blob)
            if other != blob:
                raise DataError(f"{kind} '{name}' is there twice: {other} and {blob}; name one folder with --root")
        names = [Path(blob.path) for blob in files.values()]
        archives += sorted(path for path in names if is_archive(path) and ARCHIVE_NAMES.search(path.name))
    unpacked = [path for path in archives if path.name.lower().endswith(COMPRESSED)]
    for archive in archives:
        plain = repacked(archive, is_small, cache) if archive in unpacked else archive
        for kind, name, blob in of_voc(list_archive(plain)):
            found.setdefault(kind, {}).setdefault(name, blob)
    return Files(of_kind=found, roots=tuple(roots), repacked=tuple(unpacked))


def is_small(name: str) -> bool:
    """A mask or a list: what of a compressed archive is unpacked. Its images are VOC's own."""
    return name.endswith((".mat", ".png", ".txt"))


def of_voc(files: Mapping[str, Blob]) -> Iterable[tuple[str, str, Blob]]:
    """(kind, id or name, file) of the files that matter; other years' folders do not."""
    beside_cls = {name.rpartition("/cls/")[0] for name in files if "/cls/" in name and name.endswith(".mat")}
    for name, blob in files.items():
        folder, _, file = name.rpartition("/")
        stem, dot, ending = file.rpartition(".")
        if any(re.fullmatch(r"VOC20\d\d", part) and part != "VOC2012" for part in folder.split("/")):
            continue
        kind, endings = FOLDERS.get(folder.rpartition("/")[2], ("", ()))
        if dot + ending.lower() in endings:
            yield kind, stem, blob
        elif ending == "txt" and folder.endswith("ImageSets/Segmentation"):
            yield "list", stem, blob
        elif ending == "txt" and folder in beside_cls:
            yield "SBD list", stem, blob


def read_list(blob: Blob) -> list[str]:
    """The ids of a list, one a line; of a line of paths (image, mask) the first one's name."""
    lines = blob.read().decode(errors="replace").split("\n")
    ids = [Path(line.split()[0]).stem for line in lines if line.strip()]
    twice = [one for one, count in Counter(ids).items() if count > 1]
    if twice or not ids:
        raise DataError(f"{blob}: " + (f"'{twice[0]}' is listed twice" if twice else "lists no image"))
    return ids
