"""Joint transforms of an image and its valid box. The random generator comes in as an argument.

Views are (S, S, 3) uint8; normalising and casting are done on the device, where they cost nothing.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from shards.schema import Box


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

    def __call__(self, image_HW3: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Box]:
        height, width = image_HW3.shape[:2]
        share_y, share_x, at_y, at_x, coin = rng.random(5)
        crop_height = (self.min_crop + (1 - self.min_crop) * share_y) * height
        crop_width = (self.min_crop + (1 - self.min_crop) * share_x) * width
        y0, x0 = at_y * (height - crop_height), at_x * (width - crop_width)
        view_SS3 = resize(image_HW3, (self.size, self.size), (x0, y0, x0 + crop_width, y0 + crop_height))
        if coin < self.flip:
            view_SS3 = np.ascontiguousarray(view_SS3[:, ::-1])
        return view_SS3, (0, self.size, 0, self.size)


@dataclass(frozen=True, kw_only=True)
class Squash:
    """The whole image resized to a square, whatever its shape: the evaluation view."""

    size: int

    def __call__(self, image_HW3: np.ndarray, rng: np.random.Generator | None = None) -> tuple[np.ndarray, Box]:
        return resize(image_HW3, (self.size, self.size)), (0, self.size, 0, self.size)


def resize(
    image_HW3: np.ndarray, size: tuple[int, int], box: tuple[float, float, float, float] | None = None
) -> np.ndarray:
    """Antialiased bilinear resize of `box` (x0, y0, x1, y1; the whole image if None) to size (height, width)."""
    if box is None and image_HW3.shape[:2] == size:
        return image_HW3
    return np.asarray(Image.fromarray(image_HW3).resize(size[::-1], Image.Resampling.BILINEAR, box=box))
