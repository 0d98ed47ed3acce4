"""ToCo's views of an image: two global ones, and the source of its local crops.

Geometry is done here, on uint8; colour, blur and the mirror of the local source are only drawn at random here, and
applied on the device. A sample takes a fixed number of draws from its generator, each u in [0, 1), whatever the image.

Shapes: V = 3 views (main, view2, local), S the side of a view in pixels.

Source: ToCo's data pipeline (D-78), with its box and mirror corrected (D-48).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from shards.batches.augment import View, resize, resize_mask
from shards.schema import IGNORE_INDEX, Box, DataError

PARAMETERS = ("brightness", "contrast", "saturation", "hue", "grey", "blur", "solarise", "mirror")
JITTER = (0.4, 0.4, 0.2, 0.1)  # half the width of the ranges of brightness, contrast, saturation and hue
JITTER_SHARE, GREY_SHARE, SIGMA = 0.8, 0.2, (0.1, 2.0)
BLUR_SHARE = (1.0, 0.1, 0.5)  # of main, view2, local
SOLARISE_SHARE = (0.0, 0.2, 0.0)
TRIES = 10  # of RandomResizedCrop, before it uses the centre
DRAWS = 5 + (2 * TRIES + 3) + 3 * 9 + 1  # main_view, second_view, three colours, the mirror of the local source


@dataclass(frozen=True, kw_only=True)
class TwoViews:
    """Main view: scale, mirror, crop or place on a black canvas, mirror again. Second view: RandomResizedCrop.

    Attributes:
        size: S, side of the views, in pixels.
        scale: the image's sides are multiplied by one factor from this range before the crop of the main view.
        view2_scale: the second view shows a share of the image's area from this range.
        flip: probability of a mirror, of the image before the crop and of the second view.
        main_flip: probability of the main view's second mirror, after the crop.
        local_flip: probability that the source of local crops is a mirror of the main view.
    """

    size: int
    scale: tuple[float, float] = (0.5, 2.0)
    view2_scale: tuple[float, float] = (0.4, 1.0)
    flip: float = 0.5
    main_flip: float = 0.5
    local_flip: float = 0.5

    def __post_init__(self) -> None:
        for name, (low, high) in (("scale", self.scale), ("view2_scale", self.view2_scale)):
            if not 0 < low <= high:
                raise DataError(
                    f"{name} of the views is {(low, high)}; wanted a range (low, high) with 0 < low <= high"
                )

    def __call__(self, image_HW3: np.ndarray, rng: np.random.Generator, mask_HW: np.ndarray | None = None) -> View:
        """The main view and its true box; outside the box the image is black and the mask is 255. In `more`:

        view2: (3, S, S) uint8.
        photometric: (V, 8) float32, columns PARAMETERS; wsss.photometric says what they mean.
        main_flip: () bool, whether the view and its box were mirrored after the crop.
        seed: () int64, for random draws on the device.
        """
        u, seed = iter(rng.random(DRAWS).tolist()), rng.integers(2**63, dtype=np.int64)
        main, main_flip = self.main_view(image_HW3, mask_HW, u)
        more = {
            "view2": self.second_view(image_HW3, u).transpose(2, 0, 1),
            "photometric": np.stack([colour(view, u) for view in range(3)]),
            "main_flip": np.array(main_flip),
            "seed": np.array(seed),
        }
        more["photometric"][2, -1] = next(u) < self.local_flip
        return main._replace(more=more)

    def main_view(self, image_HW3: np.ndarray, mask_HW: np.ndarray | None, u: Iterator[float]) -> tuple[View, bool]:
        """The main view, and whether it was mirrored after the crop; takes 5 draws."""
        factor, flip = between(self.scale, next(u)), next(u) < self.flip
        y = span(image_HW3.shape[0], factor, self.size, next(u))
        x = span(image_HW3.shape[1], factor, self.size, next(u))
        main_flip = next(u) < self.main_flip
        size, source = (y.length, x.length), (x.start, y.start, x.stop, y.stop)

        def placed(patch: np.ndarray, outside: int) -> np.ndarray:
            canvas = np.full((self.size, self.size, *patch.shape[2:]), outside, dtype=np.uint8)
            canvas[y.place : y.place + y.length, x.place : x.place + x.length] = patch[:, ::-1] if flip else patch
            return np.ascontiguousarray(canvas[:, ::-1]) if main_flip else canvas

        image_SS3 = placed(resize(image_HW3, size, source), 0)
        mask_SS = None if mask_HW is None else placed(resize_mask(mask_HW, size, source), IGNORE_INDEX)
        left = self.size - x.place - x.length if main_flip else x.place
        box: Box = (y.place, y.place + y.length, left, left + x.length)
        return View(image_SS3, box, mask_SS), main_flip

    def second_view(self, image_HW3: np.ndarray, u: Iterator[float]) -> np.ndarray:
        """(S, S, 3) view of a random part of the whole image; takes 2 TRIES + 3 draws."""
        height, width = image_HW3.shape[:2]
        x0, y0, x1, y1 = random_part(height, width, self.view2_scale, u)
        view_SS3 = resize(image_HW3[y0:y1, x0:x1], (self.size, self.size), by=Image.Resampling.BICUBIC)
        return view_SS3[:, ::-1] if next(u) < self.flip else view_SS3


class Span(NamedTuple):
    """One axis of a crop or placement: pixels [start, stop) of the image become `length` pixels from `place` on."""

    start: float
    stop: float
    length: int
    place: int


def span(side: int, factor: float, size: int, at: float) -> Span:
    """One axis of an image of `side` pixels, resized by the factor and cut to, or placed in, `size` pixels; `at` in
    [0, 1) says where."""
    scaled = max(1, round(factor * side))
    length, offset = min(scaled, size), int(at * (abs(scaled - size) + 1))
    if scaled <= size:
        return Span(0, side, length, offset)
    return Span(offset * side / scaled, min((offset + length) * side / scaled, side), length, 0)


def random_part(height: int, width: int, scale: tuple[float, float], u: Iterator[float]) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1) of torchvision's RandomResizedCrop with ratios 3/4 to 4/3; takes 2 TRIES + 2 draws.

    It is the first of TRIES random shapes that fits or, if none does, the largest centred part with an allowed ratio.
    """
    shapes = [(between(scale, next(u)), log_ratio(next(u))) for _ in range(TRIES)]
    at_y, at_x = next(u), next(u)
    for share, ratio in shapes:
        area = share * height * width
        rows, columns = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < rows <= height and 0 < columns <= width:
            y0, x0 = int(at_y * (height - rows + 1)), int(at_x * (width - columns + 1))
            return x0, y0, x0 + columns, y0 + rows
    rows, columns = min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3))
    y0, x0 = (height - rows) // 2, (width - columns) // 2
    return x0, y0, x0 + columns, y0 + rows


def log_ratio(u: float) -> float:
    """A ratio of width to height, whose logarithm is uniform between those of 3/4 and 4/3."""
    return math.exp(between((math.log(3 / 4), math.log(4 / 3)), u))


def colour(view: int, u: Iterator[float]) -> np.ndarray:
    """(8,) float32 PARAMETERS of a view, without a mirror; takes 9 draws."""
    jitters, greys, blurs, solarises, *shifts, sigma = (next(u) for _ in range(9))
    strength = float(jitters < JITTER_SHARE)
    brightness, contrast, saturation, hue = (
        strength * between((-half, half), shift) for half, shift in zip(JITTER, shifts, strict=True)
    )
    sigma = between(SIGMA, sigma) if blurs < BLUR_SHARE[view] else 0.0
    grey, solarise = greys < GREY_SHARE, solarises < SOLARISE_SHARE[view]
    values = (1 + brightness, 1 + contrast, 1 + saturation, hue, grey, sigma, solarise, 0)
    return np.array(values, dtype=np.float32)


def between(limits: tuple[float, float], u: float) -> float:
    low, high = limits
    return low + (high - low) * u
