"""Refiners by name: (image, scores) -> scores. Keyword-only arguments are their options in the YAML.

    image:  (H, W, 3) uint8 RGB
    scores: (n, H, W) float32 in [0, 1], one map per class that the image may show

`threshold` (mask_of) ends every chain and turns scores into a mask.
"""

from collections.abc import Callable

import numpy as np

from wsss.refine.crf import dense_crf
from wsss.refine.threshold import mask_of

Refiner = Callable[..., np.ndarray]
REFINERS: dict[str, Refiner] = {"crf": dense_crf}

__all__ = ["REFINERS", "Refiner", "mask_of"]
