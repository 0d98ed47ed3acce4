"""Figures of image-level predictions: average precision and multi-label F1."""

import numpy as np
from torch import Tensor


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


def label_f1(cls_logits_BK: Tensor, image_label_BK: Tensor) -> Tensor:
    """(B) float64 F1 between the labels of an image and the classes whose logit is above 0; 0 where both are empty.

        2 TP / (predicted + labelled)

    Source: ToCo's "cls score" (D-77; golden mlf1).
    """
    predicted_BK, true_BK = cls_logits_BK > 0, image_label_BK > 0
    both_B = (predicted_BK & true_BK).sum(dim=1)
    return 2 * both_B.double() / (predicted_BK.sum(dim=1) + true_BK.sum(dim=1)).clamp(min=1)
