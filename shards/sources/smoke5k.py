"""SMOKE5K: folders img/ and gt/ of equal file names (Yan, Zhang, Barnes, AAAI 2022).

It names no scenes, yet many frames are neighbours of one video: 86 % of the real frames of its official test split
have a near-duplicate in the training split. Without a table of groups each image is its own group, so keeping
neighbours on one side is then left to the author of the splits.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.schema import SMOKE, ClassSet, DataError, Sample, decode_image, decode_mask, encode_image
from shards.sources.smoke_images import IMAGE_ENDINGS, table_rows

COLOUR_TYPE = 25  # offset of this byte in a PNG
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
    """

    pairs: tuple[tuple[str, Path, Path, str], ...]
    with_masks: bool = False
    source: str = "smoke5k"
    class_set: ClassSet = SMOKE

    def __len__(self) -> int:
        return len(self.pairs)

    def groups(self) -> list[str]:
        return [group for _, _, _, group in self.pairs]

    def __getitem__(self, index: int) -> Sample:
        key, image, truth, group = self.pairs[index]
        data = image.read_bytes()
        if not data.startswith(b"\xff\xd8"):  # not a JPEG: the one format that shards hold
            data = encode_image(decode_image(data, str(image)))
        mask_HW = smoke_mask(decode_grey(truth.read_bytes(), str(truth)))
        return Sample(
            key=key,
            image=data,
            image_label=(1,) if mask_HW.any() else (),
            group=group,
            source=self.source,
            mask=mask_HW if self.with_masks else None,
        )


def decode_grey(data: bytes, where: str) -> np.ndarray:
    """Encoded mask -> (H, W) uint8; a colour image passes if its three channels are equal."""
    if not data.startswith(b"\x89PNG"):
        raise DataError(f"{where}: mask is no PNG; a lossy one would have wrong edges")
    if data[COLOUR_TYPE : COLOUR_TYPE + 1] != b"\x02":  # not RGB
        return decode_mask(data, where)
    image_HW3 = decode_image(data, where)
    if (image_HW3 != image_HW3[..., :1]).any():
        raise DataError(f"{where}: mask is a colour image; wanted grey levels or ids")
    return image_HW3[..., 0]


def smoke_mask(truth_HW: np.ndarray) -> np.ndarray:
    """Stored mask (H, W) uint8 -> 1 smoke, 0 none: grey levels are cut at 128; a mask of 0 and 1 holds ids already."""
    return (truth_HW >= (128 if truth_HW.max() > 1 else 1)).astype(np.uint8)


def read_smoke5k(
    root: Path,
    *,
    only: Path | None = None,
    groups: Path | None = None,
    image_folder: str = "img",
    mask_folder: str = "gt",
    with_masks: bool = False,
) -> Smoke5K:
    """Pair the images of `root`/img with the masks of `root`/gt by file name without ending.

    Args:
        only: text file of names to take, one a line, in its order; default: all, sorted.
        groups: csv with columns key and group, or json {key: group}, a key being a name without ending.

    Raises:
        DataError: a folder is missing or empty, an image has no mask, a listed name no image, an image no group.
    """
    images, masks = by_stem(root / image_folder), by_stem(root / mask_folder)
    stems = sorted(images)
    if only is not None:
        if not only.is_file():
            raise DataError(f"{only}: list of images is missing")
        stems = [Path(line.strip()).name for line in only.read_text().splitlines() if line.strip()]
        stems = [Path(name).stem if name.lower().endswith(IMAGE_ENDINGS) else name for name in stems]
    for place, known in ((root / image_folder, images), (root / mask_folder, masks)):
        lacking = [stem for stem in stems if stem not in known]
        if lacking:
            raise DataError(f"{place}: {len(lacking)} of {len(stems)} images are not here, first '{lacking[0]}'")
    group_of = {stem: stem for stem in stems} if groups is None else read_groups(groups)
    ungrouped = [stem for stem in stems if stem not in group_of]
    if ungrouped:
        raise DataError(f"{groups}: {len(ungrouped)} of {len(stems)} images have no group, first '{ungrouped[0]}'")
    pairs = tuple(
        (re.sub(r"[^A-Za-z0-9_\-]", "_", stem), images[stem], masks[stem], str(group_of[stem])) for stem in stems
    )
    return Smoke5K(pairs=pairs, with_masks=with_masks)


def by_stem(folder: Path) -> dict[str, Path]:
    """{name without ending: path} of a folder's images."""
    if not folder.is_dir():
        raise DataError(f"{folder}: folder is missing; wanted SMOKE5K's img and gt below --root")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in IMAGE_ENDINGS:
            continue
        if path.stem in found:
            raise DataError(f"{folder}: two images go by the name '{path.stem}': {found[path.stem].name}, {path.name}")
        found[path.stem] = path
    if not found:
        raise DataError(f"{folder}: holds no image ({', '.join(IMAGE_ENDINGS)})")
    return found


def read_groups(path: Path) -> dict[str, str]:
    """{name: group} of a csv or json table."""
    groups = {}
    for key, row in table_rows(path):
        group = row.get("group") if isinstance(row, Mapping) else row
        if group in (None, ""):
            raise DataError(f"{path}: '{key}' has no group; wanted columns key and group, or json {{key: group}}")
        groups[Path(key).stem if key.lower().endswith(IMAGE_ENDINGS) else key] = str(group)
    return groups
