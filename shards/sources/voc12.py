"""PASCAL VOC 2012 with the annotations of SBD: train (10,582 images, `train_aug`), val (1,449), test (1,456, no masks).

An image label is the set of classes in the mask, which is read once, when the sample is written.
"""

import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shards.image_bytes import decode_mask
from shards.schema import ClassSet, DataError, Sample, classes_in
from shards.sources.archives import Blob, Exif, digest_of, digest_of_text
from shards.sources.names import keys_of
from shards.sources.voc_files import Files, read_list
from shards.sources.voc_xml import names_in

VOC12 = ClassSet(
    name="voc12",
    classes=(
        "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
        "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
    ),
)  # fmt: skip
COMPLETE = {"train": 10_582, "val": 1_449, "test": 1_456}  # images of the whole data set
GROUP_PATTERN = r"(.+?)(?:_c\d+)?"  # an image is its own group; ID_c1, ID_c2 are crops of ID
KINDS = {"val": ("mask", "augmented mask")}  # kinds of mask by split; the first one that exists for an image is used
OTHER_KINDS = ("augmented mask", "mask", "SBD mask")
LOOKED_AT = 50  # number of annotations whose classes are compared with VOC's


class NoSuchSplit(DataError):
    """A split has no list, and none can be derived."""


@dataclass(frozen=True, slots=True)
class Picture:
    key: str
    group: str
    image: Blob
    mask: Blob | None


@dataclass(frozen=True, kw_only=True)
class Voc12:
    """Images of one split.

    Attributes:
        with_masks: give the masks, for pixel shards. Labels always come from them; a split without masks has no labels.
        exif: what to do with images that are not upright, see Blob.read_jpeg.
        ids_from: the list or sets that the ids come from.
    """

    pictures: tuple[Picture, ...]
    with_masks: bool = False
    exif: Exif = "keep"
    ids_from: str = ""
    masks_from: Mapping[str, int] = field(default_factory=dict)
    source: str = "voc12"
    class_set: ClassSet = VOC12

    def __len__(self) -> int:
        return len(self.pictures)

    def groups(self) -> list[str]:
        return [picture.group for picture in self.pictures]

    def identity(self) -> dict[str, Any]:
        return {
            "name": self.source,
            "ids_from": self.ids_from,
            "exif": self.exif,
            "masks_from": dict(self.masks_from),
            "images": digest_of(picture.image for picture in self.pictures),
            "masks": digest_of(picture.mask for picture in self.pictures if picture.mask),
            "groups": digest_of_text(f"{picture.key} {picture.group}" for picture in self.pictures),
        }

    def __getitem__(self, index: int) -> Sample:
        picture = self.pictures[index]
        mask_HW = None if picture.mask is None else read_mask(picture.mask)
        return Sample(
            key=picture.key,
            image=picture.image.read_jpeg(None if mask_HW is None else mask_HW.shape, self.exif),
            image_label=() if mask_HW is None else classes_in(mask_HW),
            group=picture.group,
            source=self.source,
            mask=mask_HW if self.with_masks else None,
            mask_place=str(picture.mask or ""),
        )


def read_mask(blob: Blob) -> np.ndarray:
    """(H, W) uint8 class ids of a PNG in VOC's colours or grey ids, or of SBD's .mat."""
    data = blob.read()
    return sbd_mask(data, str(blob)) if blob.name.endswith(".mat") else decode_mask(data, str(blob), palette="voc")


def sbd_mask(data: bytes, where: str) -> np.ndarray:
    """GTcls.Segmentation of an SBD file, (H, W) uint8; it has no 255.

    Raises:
        DataError: scipy is missing, or it is another kind of file.
    """
    try:
        from scipy.io import loadmat  # type: ignore[import-untyped]  # scipy has no types
    except ImportError as error:
        raise DataError(f"{where}: needs scipy (`pip install scipy`), or give SegmentationClassAug") from error
    try:
        mask_HW = loadmat(io.BytesIO(data), variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
    except Exception as error:  # scipy raises many types for wrong bytes
        raise DataError(f"{where}: no SBD annotation ({type(error).__name__}: {error}); fetch it again") from error
    if mask_HW.ndim != 2 or not np.isin(mask_HW, np.arange(256)).all():
        raise DataError(
            f"{where}: GTcls.Segmentation is of shape {mask_HW.shape}, type {mask_HW.dtype}; wanted ids (height, width)"
        )
    return mask_HW.astype(np.uint8)


def read_voc12(
    files: Files,
    split: str,
    *,
    list_file: str | None = None,
    group_pattern: str = GROUP_PATTERN,
    with_masks: bool = False,
    exif: Exif = "keep",
) -> Voc12:
    """One split. Its ids are those of train_aug.txt, val.txt or test.txt; a missing train list is derived.

    For `val`, VOC's own masks are preferred to SegmentationClassAug, and SBD's are never used; for other splits,
    SegmentationClassAug comes first.

    Args:
        list_file: path of a text file, or name of one in ImageSets/Segmentation; needed for a split with another name.
        group_pattern: its first group, matched against a whole id, names the photograph.

    Raises:
        NoSuchSplit: there is no list, and it cannot be derived.
        DataError: an image or mask is missing; an id does not match; see refuse_other_classes.
    """
    ids, ids_from = ids_of(files, split, list_file)
    refuse_other_classes(files, ids)
    kinds = KINDS.get(split, OTHER_KINDS)
    masks = {one: (kind, files[kind][one]) for kind in reversed(kinds) for one in files[kind]}
    for kind, known in (("image", files["image"]), ("mask", ids if split == "test" else masks)):
        lacking = [one for one in ids if one not in known]
        if lacking:
            raise DataError(
                f"{files.where}: {len(lacking)} of {len(ids)} images of split '{split}' ({ids_from}) have no {kind}, "
                f"first '{lacking[0]}'; name the folder or archive that holds it with a further --root, "
                "or leave the split out with --split"
            )
    pictures = []
    for one, key in zip(ids, keys_of(ids, ids_from), strict=True):
        match = re.fullmatch(group_pattern, one)
        if match is None or not match.groups():
            raise DataError(f"image '{one}' does not match '{group_pattern}' with a group; see --group-pattern")
        pictures.append(Picture(key, match[1], files["image"][one], None if split == "test" else masks[one][1]))
    counts = {} if split == "test" else Counter(masks[one][0] for one in ids)
    return Voc12(pictures=tuple(pictures), with_masks=with_masks, exif=exif, ids_from=ids_from, masks_from=dict(counts))


def refuse_other_classes(files: Files, ids: Sequence[str]) -> None:
    """Raise DataError if annotations beside the images name a class that VOC does not have, so that ids in masks are
    not VOC's. At most LOOKED_AT annotations are read, none from compressed archives."""
    for one in [one for one in ids if one in files["annotation"]][:LOOKED_AT]:
        where = str(blob := files["annotation"][one])
        if others := [name for name in names_in(blob.read(), where) if name not in VOC12.classes]:
            raise DataError(
                f"{where}: names the class '{others[0]}', which VOC does not have, so that the ids in masks are not "
                "VOC's: `wsss shards images` reads classes of your own, also from such annotations"
            )


def ids_of(files: Files, split: str, list_file: str | None) -> tuple[list[str], str]:
    """(image ids, where they come from)."""
    lists = files["list"]
    if list_file is not None:
        stem = Path(list_file).name.removesuffix(".txt")
        if Path(list_file).is_file():
            return read_list(Blob(list_file), files), Path(list_file).name
        if stem not in lists:
            raise DataError(f"{list_file}: no such file, and no such list in ImageSets/Segmentation: {sorted(lists)}")
        return read_list(lists[stem], files), f"{stem}.txt"
    for name in {"train": ("train_aug", "trainaug")}.get(split, (split,)):
        if name in lists:
            return read_list(lists[name], files), f"{name}.txt"
    if split != "train":
        raise NoSuchSplit(f"{files.where}: no list {split}.txt in ImageSets/Segmentation ({sorted(lists)}); see --list")
    if "val" in lists:
        val = set(read_list(lists["val"], files))
        if {"train", "val"} <= files["SBD list"].keys() and "train" in lists:
            own = read_list(lists["train"], files)
            more = [one for name in ("train", "val") for one in read_list(files["SBD list"][name], files)]
            return sorted({*own, *more} - val), "VOC train + SBD train and val - VOC val"
        if files["augmented mask"]:
            return sorted(files["augmented mask"].keys() - val), "SegmentationClassAug - VOC val"
    raise NoSuchSplit(
        f"{files.where}: no list train_aug.txt, and nothing to derive it from: VOC's train.txt and val.txt, and SBD "
        "(benchmark.tgz) or SegmentationClassAug; name them with --root, or a list with --list"
    )
