"""SAM-enhanced refinement: a seed is replaced by the Segment Anything proposals that agree with it.

Shapes: M proposals, n score maps, H x W pixels, P = H * W.
"""

from typing import Literal

import numpy as np

Strategy = Literal["copy", "and", "or"]

BLOCK = 1 << 18  # pixels whose masks are floats at one time


def sam_enhance(
    image_HW3: np.ndarray,
    scores_nHW: np.ndarray,
    proposals_MHW: np.ndarray,
    *,
    strategy: Strategy = "copy",
    seed_threshold: float = 0.3,
    min_iou: float = 0.3,
    max_area: float = 0.5,
) -> np.ndarray:
    """Replace the seed of each class by the union U of the proposals that agree with it.

        s = score >= seed_threshold
        valid = {m : |m| <= max_area * P  and  |m & s| / |m or s| >= min_iou}
        U = union of valid, or s if there is none;   copy: U,  and: U & s,  or: U | s

    "CRF+SAM" is this after `crf` in the chain: the seed is the CRF's marginal.

    Args:
        proposals_MHW: bool, at the size of the scores; see `proposals.sam_proposals`.
        min_iou: above 0, or proposals without a common pixel would agree.

    Returns:
        (n, H, W) float32, 0 or 1.

    Raises:
        ValueError: proposals of another size or type, or a share outside [0, 1] or, of min_iou, of 0.

    Source: smoke paper, section 3.3.2 and Table 4.11; D-81.
    """
    if proposals_MHW.dtype != bool or proposals_MHW.shape[1:] != scores_nHW.shape[1:]:
        raise ValueError(
            f"proposals are {proposals_MHW.shape} {proposals_MHW.dtype}, scores {scores_nHW.shape}: wanted bool masks "
            "of one size, each with a score; compute the cues from these shards"
        )
    check_enhance(strategy=strategy, seed_threshold=seed_threshold, min_iou=min_iou, max_area=max_area)
    seeds_nHW = scores_nHW >= seed_threshold
    pixels = seeds_nHW.shape[1] * seeds_nHW.shape[2]
    seeds_nP = seeds_nHW.reshape(len(seeds_nHW), pixels)
    masks_MP = proposals_MHW.reshape(len(proposals_MHW), pixels)
    valid_nM = find_agreeing(masks_MP, seeds_nP, min_iou, max_area)
    found_n1 = valid_nM.any(1, keepdims=True)
    united_nP = np.where(found_n1, unite(valid_nM, masks_MP), seeds_nP)
    united_nHW = united_nP.reshape(seeds_nHW.shape)
    if strategy == "and":
        united_nHW = united_nHW & seeds_nHW
    elif strategy == "or":
        united_nHW = united_nHW | seeds_nHW
    return united_nHW.astype(np.float32)


def find_agreeing(masks_MP: np.ndarray, seeds_nP: np.ndarray, min_iou: float, max_area: float) -> np.ndarray:
    """(n, M) bool: which proposals are small enough and overlap each seed enough."""
    shared_nM = np.zeros((len(seeds_nP), len(masks_MP)))
    for block in split_pixels(masks_MP.shape[1]):
        shared_nM += seeds_nP[:, block].astype(np.float32) @ masks_MP[:, block].astype(np.float32).T
    area_M, area_n = masks_MP.sum(1), seeds_nP.sum(1)
    either_nM = area_n[:, None] + area_M - shared_nM
    return (area_M <= max_area * masks_MP.shape[1]) & (shared_nM >= min_iou * np.maximum(either_nM, 1))


def unite(valid_nM: np.ndarray, masks_MP: np.ndarray) -> np.ndarray:
    """(n, P) bool: pixels that any valid proposal covers."""
    covered_nP = np.zeros((len(valid_nM), masks_MP.shape[1]), dtype=bool)
    for block in split_pixels(masks_MP.shape[1]):
        covered_nP[:, block] = valid_nM.astype(np.float32) @ masks_MP[:, block].astype(np.float32) > 0
    return covered_nP


def split_pixels(pixels: int) -> list[slice]:
    """Slices over the pixels, so that hundreds of masks of a large frame are not converted to floats at once."""
    return [slice(first, first + BLOCK) for first in range(0, pixels, BLOCK)]


def check_enhance(*, strategy: Strategy, seed_threshold: float, min_iou: float, max_area: float) -> None:
    """Raise ValueError for invalid options of sam_enhance."""
    for name, value in (("seed_threshold", seed_threshold), ("min_iou", min_iou), ("max_area", max_area)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}; wanted a number in [0, 1]")
    if min_iou == 0:
        raise ValueError(f"min_iou is {min_iou}; wanted above 0")
