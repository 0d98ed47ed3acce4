"""Random walk: spreads scores to the positions that AffinityNet connects.

Shapes: n score maps, H x W pixels, h x w grid of the affinities, O offsets, P positions (see maps.affinity).
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from wsss.maps.affinity import random_walk, transition_matrix
from wsss.tensors import resize

MOST_LOG_T = 10  # a thousand steps


@dataclass(frozen=True)
class AffinityCue:
    """AffinityNet's output for one image.

    Attributes:
        affinity_OP: pair_affinity of the image, in [0, 1]; float16 is enough to store.
        size: (h, w), the grid of its features.
        radius: of the pairs, in cells.
    """

    affinity_OP: np.ndarray
    size: tuple[int, int]
    radius: int


def random_walk_refine(
    image_HW3: np.ndarray,
    scores_nHW: np.ndarray,
    cue: AffinityCue,
    *,
    beta: float = 16.0,
    log_t: int = 1,
    rescale: bool = True,
) -> np.ndarray:
    """Scores -> scores after 2^log_t steps of the walk, (n, H, W) float32 in [0, 1].

    Scores are averaged over the cells of the affinity's grid, propagated there, and resized back bilinearly. Single
    steps give the same as multiplying by T^(2^log_t), and take n N^2 operations each, while squaring T takes N^3.

    Args:
        scores_nHW: in [0, 1], of the image's size.
        beta: sharpens the affinities, > 0.
        log_t: 0 to 10; the published walks have 2 to 256 steps.
        rescale: divide each map by its maximum. Every step averages and so lowers the peaks, most of all those of small
            objects; one threshold for all images needs peaks of equal height. A map of zeros stays zero. False leaves
            the values unchanged.

    Raises:
        ValueError: sizes that do not fit, scores or affinities that are not finite, beta <= 0, log_t out of range.

    Source: Ahn & Kwak 2018, section 3.3; smoke paper, 3.3 (D-31: beta 16, log_t 1; D-41).
    """
    if scores_nHW.shape[1:] != image_HW3.shape[:2]:
        raise ValueError(f"scores {scores_nHW.shape} for an image {image_HW3.shape}: wanted (n, H, W) of its size")
    check_walk(beta=beta, log_t=log_t, rescale=rescale)
    if not (np.isfinite(scores_nHW).all() and np.isfinite(cue.affinity_OP).all()):
        raise ValueError("scores and affinities must be finite; check the network that gave them")
    if len(scores_nHW) == 0:
        return scores_nHW
    affinity_OP = torch.from_numpy(cue.affinity_OP.astype(np.float32))
    walk_NN = transition_matrix(affinity_OP, cue.size, radius=cue.radius, beta=beta)
    walked_nhw = F.interpolate(torch.from_numpy(scores_nHW).float()[None], size=cue.size, mode="area")[0]
    for _ in range(2**log_t):
        walked_nhw = random_walk(walked_nhw, walk_NN)
    scores = resize(walked_nhw[None], image_HW3.shape[:2])[0]
    if rescale:
        peak_n11 = scores.amax(dim=(1, 2), keepdim=True)
        scores = scores / torch.where(peak_n11 > 0, peak_n11, 1.0)
    return scores.clamp(0, 1).numpy()


def check_walk(*, beta: float, log_t: int, rescale: bool) -> None:
    """Raise ValueError for invalid options of random_walk_refine."""
    if beta <= 0 or not 0 <= log_t <= MOST_LOG_T:
        raise ValueError(
            f"beta is {beta}, log_t {log_t}; wanted beta above 0, and log_t from 0 to {MOST_LOG_T} (the walk takes "
            "2^log_t steps)"
        )
