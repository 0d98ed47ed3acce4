"""Refiners by name, ours and those of installed packages: (image, scores) -> scores. Keyword-only arguments
are their options in the YAML.

    image:  (H, W, 3) uint8 RGB
    scores: (n, H, W) float32 in [0, 1], one map per class that the image may show, n >= 1
    cue: a third argument for refiners that have one (`takes_cue`): what was computed once for the image

`run_chain` (wsss.refine.chain) checks that each gives scores in [0, 1]; `mask_of` ends every chain and turns scores
into a mask.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from wsss.refine.aid import check_aid, clip_aid
from wsss.refine.crf import check_crf, dense_crf
from wsss.refine.sam import check_enhance, sam_enhance
from wsss.refine.threshold import mask_of
from wsss.refine.walk import check_walk, random_walk_refine
from wsss.registry import Registry, not_callable

Refiner = Callable[..., np.ndarray]
OURS: dict[str, Refiner] = {
    "crf": dense_crf,
    "sam": sam_enhance,
    "walk": random_walk_refine,
    "clip": clip_aid,
    "concept": clip_aid,
}
CHECKS: dict[str, Callable[..., None]] = {  # options that fit no image, told by a ValueError before there is one
    "crf": check_crf,
    "sam": check_enhance,
    "walk": check_walk,
    "clip": check_aid,
    "concept": check_aid,
}
REFINERS = Registry("wsss.refiners", OURS, not_callable)


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError for options of a refiner that fit no image: what its own check finds, see CHECKS; that of a
    package's refiner is an attribute `check` of its function."""
    check = CHECKS.get(name, getattr(REFINERS[name], "check", None))
    if check is not None:
        check(**options)


def takes_cue(name: str) -> bool:
    """Whether the refiner of this name has a third argument besides image and scores."""
    parameters = inspect.signature(REFINERS[name]).parameters.values()
    return sum(parameter.kind is not parameter.KEYWORD_ONLY for parameter in parameters) == 3


__all__ = ["REFINERS", "Refiner", "check_options", "mask_of", "takes_cue"]
