"""Scores -> mask."""

from collections.abc import Sequence

import numpy as np

from wsss.tensors import IGNORE_INDEX


def mask_of(
    scores_nHW: np.ndarray, class_ids: Sequence[int], *, threshold: float, bg_threshold: float | None = None
) -> np.ndarray:
    """The class of the highest score where it reaches the threshold, else background.

    Both are compared in float32, as `wsss.metrics.counts.count` does: a stored 0.7 reaches the threshold 0.7.

    Args:
        scores_nHW: scores of the n classes, in [0, 1]; no NaN.
        class_ids: their ids 1..K.
        bg_threshold: scores from here up to the threshold become 255 (ignored); None = nothing is ignored.

    Returns:
        (H, W) uint8 class ids, 0 = background.

    Raises:
        ValueError: different numbers of maps and class ids, or a score that is NaN.

    Source: smoke paper, 4.2 (0.3). The published code uses > on CAMs and >= after the CRF; here >= in both.
    """
    if len(scores_nHW) != len(class_ids):
        raise ValueError(
            f"{len(scores_nHW)} score maps for {len(class_ids)} classes {list(class_ids)}; wanted one map per class"
        )
    if len(class_ids) == 0:
        return np.zeros(scores_nHW.shape[1:], dtype=np.uint8)
    if np.isnan(scores_nHW).any():
        raise ValueError(
            f"{np.isnan(scores_nHW).sum()} of {scores_nHW.size} scores are NaN: no threshold can be applied"
        )
    best_HW = scores_nHW.argmax(0)
    mask_HW = np.asarray(class_ids, dtype=np.uint8)[best_HW]
    score_HW = scores_nHW.max(0).astype(np.float32)
    below_HW = np.zeros_like(mask_HW)
    if bg_threshold is not None:
        below_HW[score_HW >= np.float32(bg_threshold)] = IGNORE_INDEX
    return np.where(score_HW >= np.float32(threshold), mask_HW, below_HW)
