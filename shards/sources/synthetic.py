"""Synthetic factory scenes: smoke with exact masks, and a shortcut that image labels invite.

Every scene has sky, skyline and clouds; some have haze. A chimney is in the scene with probability `cooccurrence` if
there is smoke, and with 1 - `cooccurrence` if there is none. Near 1, a classifier may learn "chimney" instead of
"smoke"; a validation split at 0.5 then shows it, since a chimney says nothing there.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from shards.image_bytes import encode_image
from shards.schema import SMOKE, Box, ClassSet, DataError, Sample

FRAMES_PER_SCENE = 4
MASK_OPACITY = 0.2  # plume pixels at least this opaque are smoke
SWING, RISE = 0.2, 0.05  # of a plume: how far the wind moves its end, and its rise per frame; as shares of the side


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """`num_images` scenes as a source of samples.

    Attributes:
        split: its name seeds the randomness, so that two splits never show the same scene.
        size: side of the square frame, in pixels.
        cooccurrence: P(chimney | smoke) = P(no chimney | no smoke), in [0, 1].
        smoke_rate: share of frames with smoke, in [0, 1].
        with_masks: give masks and chimney boxes, for pixel shards.
    """

    split: str
    num_images: int
    size: int = 128
    cooccurrence: float = 0.5
    smoke_rate: float = 0.5
    seed: int = 0
    with_masks: bool = False
    class_set: ClassSet = SMOKE

    def __post_init__(self) -> None:
        for name in ("cooccurrence", "smoke_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"synthetic: {name} is {getattr(self, name)}; wanted a share in [0, 1]")
        if self.size < 32:
            raise DataError(f"synthetic: size is {self.size} px; a scene needs at least 32")

    def __len__(self) -> int:
        return self.num_images

    def groups(self) -> list[str]:
        return [self._group(index) for index in range(self.num_images)]

    def identity(self) -> dict[str, Any]:
        drawn = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "class_set"}
        return {"name": f"synthetic {type(self).__name__.lower()}", **drawn}

    def _group(self, index: int) -> str:
        return f"{self.split}-scene{index // FRAMES_PER_SCENE:05d}"

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, *self.split.encode(), *key))

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.num_images:
            raise IndexError(f"scene {index} of {self.num_images}")
        scene_rng = self._rng(0, index // FRAMES_PER_SCENE)  # shared by the frames of one scene
        frame_rng = self._rng(1, index)
        smoke = frame_rng.random() < self.smoke_rate
        chimney = frame_rng.random() < (self.cooccurrence if smoke else 1 - self.cooccurrence)

        image_HW3, horizon = draw_background(self.size, scene_rng)
        mouth, boxes = None, []
        if chimney:
            box = draw_chimney(image_HW3, horizon, frame_rng)
            mouth, boxes = (box[0], (box[2] + box[3]) // 2), [box]
        draw_clouds(image_HW3, horizon, frame_rng)
        opacity_HW = np.zeros((self.size, self.size))
        if smoke:
            if mouth is None:  # smoke from the ground, from behind a hall: no chimney needed
                mouth = (horizon, int(frame_rng.uniform(0.2, 0.8) * self.size))
            opacity_HW = draw_plume(image_HW3, mouth, frame_rng)
        if frame_rng.random() < 0.3:
            draw_haze(image_HW3, horizon, frame_rng)
        image_HW3 += frame_rng.normal(0, 0.012, image_HW3.shape)
        return Sample(
            key=f"{self.split}-{index:05d}",
            image=encode_image((image_HW3.clip(0, 1) * 255).astype(np.uint8)),
            image_label=(1,) if smoke else (),
            group=self._group(index),
            source="synthetic",
            mask=(opacity_HW >= MASK_OPACITY).astype(np.uint8) if self.with_masks else None,
            regions={"chimney": boxes} if self.with_masks else {},
        )


def noise(size: int, cells: int, rng: np.random.Generator, octaves: int = 3) -> np.ndarray:
    """(size, size) smooth noise in [0, 1]: a few octaves of upsampled random grids."""
    total_HW = np.zeros((size, size))
    for octave in range(octaves):
        grid = rng.random((cells * 2**octave, cells * 2**octave)).astype(np.float32)
        layer = np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC))
        total_HW += layer / 2**octave
    low, high = total_HW.min(), total_HW.max()
    return (total_HW - low) / (high - low)


def blend(image_HW3: np.ndarray, colour: np.ndarray, opacity_HW: np.ndarray) -> None:
    """Paint a translucent colour over the image, in place."""
    image_HW3 += (colour - image_HW3) * opacity_HW[..., None]


def draw_background(size: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Sky, halls and ground -> (H, W, 3) floats in [0, 1] and the row of the horizon."""
    horizon = int(size * rng.uniform(0.6, 0.8))
    top, low = np.array([0.35, 0.5, 0.75]), np.array([0.75, 0.8, 0.85])
    brightness = rng.uniform(0.6, 1.05)
    fade = np.linspace(0, 1, size)[:, None, None] * np.ones((1, size, 1))
    image_HW3 = (top * (1 - fade) + low * fade) * brightness
    ground = np.array([0.3, 0.32, 0.25]) * rng.uniform(0.7, 1.3)
    image_HW3[horizon:] = ground * (0.8 + 0.4 * noise(size, 8, rng)[horizon:, :, None])
    for _ in range(rng.integers(2, 6)):
        width, height = rng.uniform(0.08, 0.3) * size, rng.uniform(0.04, 0.15) * size
        x0 = rng.uniform(-0.1, 0.95) * size
        box = (int(horizon - height), horizon, int(max(x0, 0)), int(min(x0 + width, size)))
        image_HW3[box[0] : box[1], box[2] : box[3]] = rng.uniform(0.2, 0.6) * rng.uniform(0.85, 1.15, 3)
    return image_HW3, horizon


def draw_chimney(image_HW3: np.ndarray, horizon: int, rng: np.random.Generator) -> Box:
    """Draw a round, sometimes banded stack on the horizon, in place; returns its box."""
    size = image_HW3.shape[0]
    width = max(4, int(size * rng.uniform(0.06, 0.1)))
    height = int(size * rng.uniform(0.25, 0.4))
    x0 = int(rng.uniform(0.1, 0.9) * (size - width))
    y0, y1, x1 = horizon - height, horizon, x0 + width
    shade_W = 0.7 + 0.3 * np.sin(np.linspace(0, np.pi, width))
    colour_HW3 = np.broadcast_to(np.array([0.5, 0.4, 0.36]) * rng.uniform(0.8, 1.3), (height, width, 3)).copy()
    if rng.random() < 0.5:
        band = max(2, height // 8)
        colour_HW3[(np.arange(height) // band) % 2 == 0] = [0.75, 0.2, 0.18]
    image_HW3[y0:y1, x0:x1] = colour_HW3 * shade_W[:, None]
    return (y0, y1, x0, x1)


def draw_clouds(image_HW3: np.ndarray, horizon: int, rng: np.random.Generator, shift: float = 0.0) -> None:
    """Draw wide clouds high in the sky, in place: neutral grey to white, soft like smoke, but not smoke.

    Args:
        shift: how far the last cloud has drifted to the right, in pixels.
    """
    size = image_HW3.shape[0]
    rows, columns = np.mgrid[0:size, 0:size]
    texture_HW = noise(size, 4, rng)
    clouds = rng.integers(1, 4)
    for cloud in range(clouds):
        y, x = rng.uniform(0.02, 0.3) * size, rng.uniform(0, 1) * size + (shift if cloud == clouds - 1 else 0)
        height, width = rng.uniform(0.04, 0.08) * size, rng.uniform(0.15, 0.35) * size
        shape_HW = np.exp(-((rows - y) ** 2) / (2 * height**2) - (columns - x) ** 2 / (2 * width**2))
        opacity_HW = (1.4 * shape_HW * texture_HW).clip(0, 0.85)
        opacity_HW[horizon:] = 0
        blend(image_HW3, np.full(3, rng.uniform(0.55, 0.95)), opacity_HW)


def draw_plume(image_HW3: np.ndarray, mouth: tuple[int, int], rng: np.random.Generator, age: float = 0.0) -> np.ndarray:
    """Draw a soft plume rising from `mouth` (row, column) and bending with the wind, in place -> (H, W) opacity.

    It is darker than most clouds and warm in colour, so that small networks learn it from random weights in minutes.

    Args:
        age: number of frames since the first: the wind swings, and what is in the plume has risen.
    """
    size = image_HW3.shape[0]
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32)
    rise, wind = rng.uniform(0.3, 0.6) * size, rng.uniform(-0.45, 0.45) * size
    start, growth = 0.025 * size, rng.uniform(0.09, 0.15) * size
    wind += SWING * size * np.sin(age / 2)
    risen = -round(RISE * size * age)
    thickness_HW = np.zeros((size, size))
    for t in np.linspace(0, 1, 14):
        y, x = mouth[0] - rise * t**0.8, mouth[1] + wind * t**1.5
        y, x = y + rng.normal(0, 0.012 * size), x + rng.normal(0, 0.012 * size)
        radius = start + growth * t
        puff_HW = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * radius**2))
        thickness_HW = np.maximum(thickness_HW, puff_HW * (1 - 0.6 * t))
    turbulence_HW = np.roll(0.45 + 0.75 * noise(size, 10, rng, octaves=4), risen, axis=0)
    opacity_HW = (thickness_HW * turbulence_HW * rng.uniform(1.0, 1.4)).clip(0, 0.95)
    soft = Image.fromarray((opacity_HW * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(size / 160))
    opacity_HW = np.asarray(soft) / 255
    grey = rng.uniform(0.25, 0.65)
    tint_HW1 = np.roll(0.8 + 0.4 * noise(size, 12, rng)[..., None], risen, axis=0)
    blend(image_HW3, grey * tint_HW1 * np.array([1.0, 0.93, 0.85]), opacity_HW)
    return opacity_HW


def draw_haze(image_HW3: np.ndarray, horizon: int, rng: np.random.Generator) -> None:
    """Draw a thin veil around the horizon, in place."""
    size = image_HW3.shape[0]
    distance = np.abs(np.arange(size) - horizon) / size
    opacity_HW = np.repeat((rng.uniform(0.1, 0.3) * np.exp(-distance / 0.25))[:, None], size, axis=1)
    blend(image_HW3, np.array([0.8, 0.82, 0.84]), opacity_HW)
