"""Joint transforms of an image, its valid box and, if there is one, its mask. The generator is an argument.

Views are (S, S, 3) uint8; normalising and casting are done on the device, where they cost nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from PIL import Image

from shards.schema import Box


class View(NamedTuple):
    """The view that a transform makes of a sample.

    Attributes:
        image_SS3: uint8 RGB.
        box: where the view shows the image.
        mask_SS: class ids, or None if the transform got no mask.
        more: further arrays by name, which get the same name in the batch.
    """

    image_SS3: np.ndarray
    box: Box
    mask_SS: np.ndarray | None
    more: Mapping[str, np.ndarray] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random crop, squash to a square, random horizontal flip.

    Attributes:
        size: side of the square view, in pixels.
        min_crop: the crop keeps a random share of each side in [min_crop, 1], drawn per side; 1 = no crop.
        flip: probability of the flip.
    """

    size: int
    min_crop: float = 1.0
    flip: float = 0.5

    def __call__(self, image_HW3: np.ndarray, rng: np.random.Generator, mask_HW: np.ndarray | None = None) -> View:
        height, width = image_HW3.shape[:2]
        share_y, share_x, at_y, at_x, coin = rng.random(5)
        crop_height = (self.min_crop + (1 - self.min_crop) * share_y) * height
        crop_width = (self.min_crop + (1 - self.min_crop) * share_x) * width
        y0, x0 = at_y * (height - crop_height), at_x * (width - crop_width)
        crop = (x0, y0, x0 + crop_width, y0 + crop_height)
        size = (self.size, self.size)
        view_SS3 = resize(image_HW3, size, crop)
        mask_SS = None if mask_HW is None else resize_mask(mask_HW, size, crop)
        if coin < self.flip:
            view_SS3 = view_SS3[:, ::-1]
            mask_SS = None if mask_SS is None else mask_SS[:, ::-1]
        return View(view_SS3, (0, self.size, 0, self.size), mask_SS)


@dataclass(frozen=True, kw_only=True)
class Squash:
    """The whole image resized to a square, whatever its shape: the evaluation view."""

    size: int

    def __call__(
        self, image_HW3: np.ndarray, rng: np.random.Generator | None = None, mask_HW: np.ndarray | None = None
    ) -> View:
        size = (self.size, self.size)
        mask_SS = None if mask_HW is None else resize_mask(mask_HW, size)
        return View(resize(image_HW3, size), (0, self.size, 0, self.size), mask_SS)


@dataclass(frozen=True, kw_only=True)
class Whole:
    """The image unchanged, for frames that are seen through windows."""

    def __call__(
        self, image_HW3: np.ndarray, rng: np.random.Generator | None = None, mask_HW: np.ndarray | None = None
    ) -> View:
        height, width = image_HW3.shape[:2]
        return View(image_HW3, (0, height, 0, width), mask_HW)


def resize(
    image_HW3: np.ndarray,
    size: tuple[int, int],
    box: tuple[float, float, float, float] | None = None,
    by: Image.Resampling = Image.Resampling.BILINEAR,
) -> np.ndarray:
    """Antialiased resize of `box` (x0, y0, x1, y1; the whole image if None) to size (height, width)."""
    if box is None and image_HW3.shape[:2] == size:
        return image_HW3
    return np.asarray(Image.fromarray(image_HW3).resize(size[::-1], by, box=box))


def resize_mask(
    mask_HW: np.ndarray, size: tuple[int, int], box: tuple[float, float, float, float] | None = None
) -> np.ndarray:
    """The same for a mask: each pixel gets the class of the nearest one, since class ids cannot be mixed."""
    if box is None and mask_HW.shape == size:
        return mask_HW
    return np.asarray(Image.fromarray(mask_HW).resize(size[::-1], Image.Resampling.NEAREST, box=box))
