"""SMOKE5K: folders img/ and gt/ with equal file names (Yan, Zhang, Barnes, AAAI 2022).

It names no scenes, although many frames are neighbours in a video: 86 % of the real frames of its official test split
have a near-duplicate in the training split. Without a table of groups each image is its own group, and the author of
the splits must keep neighbours on one side.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards.image_bytes import decode_grey
from shards.schema import IGNORE_INDEX, SMOKE, ClassSet, DataError, Sample
from shards.sources.archives import Blob, Exif, digest_of, digest_of_text, list_folder
from shards.sources.names import IMAGE_ENDINGS, Names, check_one_row_each, keys_of, plain, without_ending
from shards.sources.text import cell_of, names_of, read_bytes, read_rows

NO_GROUPS = (
    "SMOKE5K names no scenes: each image is its own group, although near-duplicates exist (86 % of the real frames of "
    "the official test split have one in train). Give --groups to keep scenes on one side"
)


@dataclass(frozen=True, kw_only=True)
class Smoke5K:
    """Image and mask pairs as a source of samples. The label is whether the mask shows smoke.

    Attributes:
        pairs: (key, image, mask, group).
        with_masks: give the masks, for pixel shards.
        exif: what to do with images that are not upright, see Blob.read_jpeg.
    """

    pairs: tuple[tuple[str, Path, Path, str], ...]
    with_masks: bool = False
    exif: Exif = "keep"
    source: str = "smoke5k"
    class_set: ClassSet = SMOKE

    def __len__(self) -> int:
        return len(self.pairs)

    def groups(self) -> list[str]:
        return [group for _, _, _, group in self.pairs]

    def identity(self) -> dict[str, Any]:
        return {
            "name": self.source,
            "exif": self.exif,
            "rows": digest_of_text(f"{key} {group}" for key, _, _, group in self.pairs),
            "images": digest_of(Blob(str(image)) for _, image, _, _ in self.pairs),
            "masks": digest_of(Blob(str(truth)) for _, _, truth, _ in self.pairs),
        }

    def __getitem__(self, index: int) -> Sample:
        key, image, truth, group = self.pairs[index]
        mask_HW = smoke_mask(decode_grey(Blob(str(truth)).read(), str(truth)), str(truth))
        return Sample(
            key=key,
            image=Blob(str(image)).read_jpeg(exif=self.exif),
            image_label=(1,) if (mask_HW == 1).any() else (),
            group=group,
            source=self.source,
            mask=mask_HW if self.with_masks else None,
            mask_place=str(truth),
        )


def smoke_mask(truth_HW: np.ndarray, where: str = "mask") -> np.ndarray:
    """Stored mask (H, W) uint8 -> 1 smoke, 0 none, 255 ignored.

    A mask with only the values 0, 1 and 255, and with a 1, holds ids. Other values are grey levels, cut at 128.

    Raises:
        DataError: grey levels that all stay below 128.
    """
    present = set(np.unique(truth_HW).tolist())
    if present <= {0} or (1 in present and present <= {0, 1, IGNORE_INDEX}):
        return truth_HW
    if max(present) < 128:
        raise DataError(
            f"{where}: holds the values {sorted(present)[:8]}; wanted grey levels of which smoke has 128 or more, or "
            "the ids 0, 1 and 255 (ignore)"
        )
    return (truth_HW >= 128).astype(np.uint8)


def read_smoke5k(
    root: Path,
    *,
    only: Path | None = None,
    groups: Path | None = None,
    image_folder: str = "img",
    mask_folder: str = "gt",
    with_masks: bool = False,
    exif: Exif = "keep",
) -> Smoke5K:
    """Pair the images of `root`/img with the masks of `root`/gt by their paths without endings.

    Args:
        only: text file of names to take, one per line, in its order; default: all, sorted.
        groups: csv with columns key and group, or json {key: group}; a key is a name without ending.

    Raises:
        DataError: a folder is missing or empty, an image has no mask, a mask no image (unless a list is given), a
            listed name no image, an image no group; or a name may mean two files.
    """
    images, masks = found_in(root / image_folder), found_in(root / mask_folder)
    names = sorted(map(without_ending, images.files)) if only is None else names_of(read_bytes(only), str(only))
    found = [images.find(below(name, image_folder, images), str(only or root / image_folder)) for name in names]
    stems = [without_ending(path or name) for path, name in zip(found, names, strict=True)]
    truths = [masks.find(f"{stem}.png", str(root / mask_folder)) or masks.find(stem, str(root)) for stem in stems]
    for place, files in ((root / image_folder, found), (root / mask_folder, truths)):
        lacking = [stem for stem, path in zip(stems, files, strict=True) if path is None]
        if lacking:
            raise DataError(f"{place}: {len(lacking)} of {len(stems)} images are not here, first '{lacking[0]}'")
    check_one_row_each(zip(names, found, strict=True), str(only or root / image_folder), "image")
    extra = sorted({*masks.files} - {*truths}) if only is None else []
    if extra:
        raise DataError(
            f"{root / mask_folder}: {len(extra)} masks have no image in {root / image_folder} "
            f"({', '.join(IMAGE_ENDINGS)}), first '{extra[0]}'; add the images, remove the masks or name what to take "
            "with --list"
        )
    group_of = {plain(stem): stem for stem in stems} if groups is None else read_groups(groups)
    ungrouped = [stem for stem in stems if plain(stem) not in group_of]
    if ungrouped:
        raise DataError(f"{groups}: {len(ungrouped)} of {len(stems)} images have no group, first '{ungrouped[0]}'")
    pairs = tuple(
        (key, images.files[str(image)], masks.files[str(truth)], group_of[plain(stem)])
        for key, image, truth, stem in zip(keys_of(stems, str(root)), found, truths, stems, strict=True)
    )
    return Smoke5K(pairs=pairs, with_masks=with_masks, exif=exif)


def below(name: str, folder: str, images: Names[Path]) -> str:
    """A listed name without the folder of images in front, unless that folder contains a folder of the same name."""
    bare = plain(name)
    return bare.removeprefix(f"{plain(folder)}/") if images.find(name, folder) is None else name


def found_in(folder: Path) -> Names[Path]:
    """The images of a folder by their path below it."""
    if not folder.is_dir():
        raise DataError(f"{folder}: folder is missing; wanted SMOKE5K's img and gt below --root")
    paths = {path.partition("/")[2]: Path(blob.path) for path, blob in list_folder(folder).items()}
    images = {path: file for path, file in paths.items() if path.lower().endswith(IMAGE_ENDINGS)}
    if not images:
        raise DataError(f"{folder}: holds no image ({', '.join(IMAGE_ENDINGS)})")
    names = Names(images, str(folder))
    for path in images:
        names.find(without_ending(path), str(folder))  # refuses two images with the same name
    return names


def read_groups(path: Path) -> dict[str, str]:
    """{name without ending: group} of a csv or json table."""
    groups: dict[str, str] = {}
    for key, row in read_rows(path):
        where = f"{path}: '{key}'"
        hint = "wanted columns key and group, or json {key: group}"
        name = without_ending(plain(key))
        if name in groups:
            raise DataError(f"{where} occurs twice, with and without its ending; remove one of its rows")
        groups[name] = cell_of(row if isinstance(row, Mapping) else {"group": row}, "group", where, hint)
    return groups
