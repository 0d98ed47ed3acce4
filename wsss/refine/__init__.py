"""Refiners by name: (image, scores) -> scores. Keyword-only arguments are their options in the YAML.

    image:  (H, W, 3) uint8 RGB
    scores: (n, H, W) float32 in [0, 1], one map per class that the image may show
    cue:    for those in CUED a third argument: what was computed once of the image for this refiner

`threshold` (mask_of) ends every chain and turns scores into a mask.
"""

from collections.abc import Callable

import numpy as np

from wsss.refine.clip import clip_aid
from wsss.refine.crf import dense_crf
from wsss.refine.sam import sam_enhance
from wsss.refine.threshold import mask_of
from wsss.refine.walk import random_walk_refine

Refiner = Callable[..., np.ndarray]
REFINERS: dict[str, Refiner] = {
    "crf": dense_crf,
    "sam": sam_enhance,
    "walk": random_walk_refine,
    "clip": clip_aid,
}
CUED = {"sam", "walk", "clip"}

__all__ = ["CUED", "REFINERS", "Refiner", "mask_of"]
