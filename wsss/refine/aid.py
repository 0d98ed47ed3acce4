"""Scores combined with maps of the same classes that come from texts: those of CLIP, SigLIP or SAM 3.

Shapes: n score maps, H x W pixels, h x w grid of the maps.
"""

from typing import Literal

import numpy as np
import torch

from wsss.tensors import resize

WEIGHT = 0.5


def clip_aid(
    image_HW3: np.ndarray,
    scores_nHW: np.ndarray,
    maps_nhw: np.ndarray,
    *,
    mode: Literal["product", "mean", "replace"] = "product",
    weight: float = WEIGHT,
) -> np.ndarray:
    """Combine scores c with maps q of the same classes from CLIP, SigLIP or SAM 3; w = weight.

        product: c^(1-w) q^w,   mean: (1-w) c + w q,   replace: q

    Args:
        maps_nhw: in [0, 1], at any grid; resized bilinearly.

    Returns:
        (n, H, W) float32 in [0, 1].

    Raises:
        ValueError: different numbers of maps and scores, a weight outside [0, 1], or a weight together with `replace`.
    """
    if len(maps_nhw) != len(scores_nHW):
        raise ValueError(
            f"{len(maps_nhw)} maps of texts for {len(scores_nHW)} classes; choose cues of the same classes"
        )
    check_aid(mode=mode, weight=weight)
    if len(scores_nHW) == 0:
        return scores_nHW
    maps_nHW = resize(torch.from_numpy(maps_nhw.astype(np.float32))[None], scores_nHW.shape[1:])[0].numpy()
    maps_nHW = maps_nHW.clip(0, 1)
    if mode == "replace":
        return maps_nHW
    if mode == "mean":
        return ((1 - weight) * scores_nHW + weight * maps_nHW).astype(np.float32)
    return (scores_nHW ** (1 - weight) * maps_nHW**weight).astype(np.float32)


def check_aid(*, mode: str, weight: float) -> None:
    """Raise ValueError for invalid options of clip_aid."""
    if not 0 <= weight <= 1:
        raise ValueError(f"weight is {weight}; wanted a number in [0, 1]")
    if mode == "replace" and weight != WEIGHT:
        raise ValueError(f"weight is {weight}, which mode replace does not read; leave it out ({WEIGHT})")
