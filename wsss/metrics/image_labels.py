"""Metrics of image-level predictions: average precision, F1, and how well probabilities are calibrated.

Shapes: N images, or decisions about a class of an image; B images of a batch, K classes.
"""

import numpy as np
from torch import Tensor

BINS = 10  # of probabilities


def average_precision(score_N: np.ndarray, positive_N: np.ndarray) -> float:
    """Area under the precision-recall steps of image-level scores; NaN without a positive image.

    AP = sum over positives of precision at their rank, divided by their number; equal scores share a rank.
    """
    if not positive_N.any():
        return float("nan")
    order = np.argsort(-score_N, kind="stable")
    hit, score = positive_N[order].astype(float), score_N[order]
    last_of_rank = np.append(score[1:] != score[:-1], True)
    tp, predicted = np.cumsum(hit)[last_of_rank], (np.arange(len(hit)) + 1)[last_of_rank]
    gained = np.diff(tp, prepend=0)
    return float((gained * tp / predicted).sum() / positive_N.sum())


def f1(predicted_N: np.ndarray, positive_N: np.ndarray) -> float:
    """2 TP / (predicted + positive) of one class over images; NaN if it is neither predicted nor present."""
    total = int(predicted_N.sum() + positive_N.sum())
    return 2 * int((predicted_N & positive_N).sum()) / total if total else float("nan")


def reliability(prob_N: np.ndarray, positive_N: np.ndarray) -> list[tuple[float, float, int]]:
    """(mean probability, share of positives, count) of the decisions in each of BINS equal parts of [0, 1]; parts
    without decisions are left out."""
    part_N = np.minimum((prob_N * BINS).astype(int), BINS - 1)
    inside = [part_N == part for part in range(BINS)]
    return [(float(prob_N[i].mean()), float(positive_N[i].mean()), int(i.sum())) for i in inside if i.any()]


def calibration_error(prob_N: np.ndarray, positive_N: np.ndarray) -> float:
    """Mean distance between predicted probability and share of positives, in [0, 1]; NaN without decisions.

        sum over the parts of count / N * |mean probability - share of positives|

    Source: expected calibration error (Naeini et al., 2015; Guo et al., 2017), over all decisions about a class.
    """
    parts = reliability(prob_N, positive_N)
    return sum(count * abs(said - true) for said, true, count in parts) / len(prob_N) if parts else float("nan")


def label_f1(cls_logits_BK: Tensor, image_label_BK: Tensor) -> Tensor:
    """(B) float64 F1 between the labels of an image and the classes whose logit is above 0; 0 where both are empty.

        2 TP / (predicted + labelled)

    Source: ToCo's "cls score" (D-77; golden mlf1).
    """
    predicted_BK, true_BK = cls_logits_BK > 0, image_label_BK > 0
    both_B = (predicted_BK & true_BK).sum(dim=1)
    return 2 * both_B.double() / (predicted_BK.sum(dim=1) + true_BK.sum(dim=1)).clamp(min=1)
