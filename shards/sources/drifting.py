"""The synthetic scenes as clips: halls, chimney and haze stand still, the plume swings and rises, a cloud drifts."""

from dataclasses import dataclass, replace

import numpy as np

from shards.image_bytes import encode_image
from shards.schema import DataError, Frame, Sample
from shards.sources.synthetic import (
    MASK_OPACITY,
    Synthetic,
    draw_background,
    draw_chimney,
    draw_clouds,
    draw_haze,
    draw_plume,
)

DRIFT = 0.004  # how far a cloud drifts per frame, as a share of the side; a plume is faster
NOISE = 0.012  # standard deviation of a pixel's noise, drawn for each frame
EXPOSURE = 0.01  # how much brighter or darker than the others a frame may be


@dataclass(frozen=True, kw_only=True)
class Drifting(Synthetic):
    """Clips of `frames` frames, one clip per scene; the last is shorter if num_images is not a multiple.

    A clip shows smoke in all its frames or in none; the same holds for the chimney.
    """

    frames: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frames < 2:
            raise DataError(f"synthetic: {self.frames} frames of a clip; wanted 2 or more")

    def _group(self, index: int) -> str:
        return f"{self.split}-clip{index // self.frames:05d}"

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.num_images:
            raise IndexError(f"frame {index} of {self.num_images}")
        clip, number = divmod(index, self.frames)
        scene, frame = self._rng(2, clip), self._rng(3, index)
        smoke = scene.random() < self.smoke_rate
        chimney = scene.random() < (self.cooccurrence if smoke else 1 - self.cooccurrence)
        start = scene.uniform(0, 4 * np.pi)  # age of the first frame, in frames; the wind swings once in 4 pi frames
        towards = scene.choice([-1, 1])

        image_HW3, horizon = draw_background(self.size, scene)
        mouth, boxes = (horizon, int(scene.uniform(0.2, 0.8) * self.size)), []
        if chimney:
            box = draw_chimney(image_HW3, horizon, scene)
            mouth, boxes = (box[0], (box[2] + box[3]) // 2), [box]
        draw_clouds(image_HW3, horizon, scene, towards * DRIFT * self.size * number)
        opacity_HW = np.zeros((self.size, self.size))
        if smoke:
            opacity_HW = draw_plume(image_HW3, mouth, scene, start + number)
        if scene.random() < 0.3:
            draw_haze(image_HW3, horizon, scene)
        image_HW3 *= frame.uniform(1 - EXPOSURE, 1 + EXPOSURE)
        image_HW3 += frame.normal(0, NOISE, image_HW3.shape)
        sample = Sample(
            key=f"{self._group(index)}-f{number:02d}",
            image=encode_image((image_HW3.clip(0, 1) * 255).astype(np.uint8)),
            image_label=(1,) if smoke else (),
            group=self._group(index),
            source="synthetic",
            frame=Frame(self._group(index), number),
        )
        if not self.with_masks:
            return sample
        mask_HW = (opacity_HW >= MASK_OPACITY).astype(np.uint8)
        return replace(sample, mask=mask_HW, regions={"chimney": boxes})
