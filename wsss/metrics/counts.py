"""How good scores and masks are: counts per image and threshold, and the metrics computed from them.

Shapes: N images, T thresholds, C classes with background, H x W pixels. Truth is 0 background, 1..K class, 255 ignore.
A pixel is predicted where score >= threshold, both in float32, as `wsss.refine.threshold.mask_of` compares them: a
stored 0.7 reaches the threshold 0.7. A metric without anything to count is NaN.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wsss.tensors import IGNORE_INDEX

THRESHOLDS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Counts:
    """Pixels of each image at each threshold, int64 (N, T): true and false positives, false negatives.

    `pixels_N` counts the pixels that are not ignored.
    """

    tp_NT: np.ndarray
    fp_NT: np.ndarray
    fn_NT: np.ndarray
    pixels_N: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels_N)

    @staticmethod
    def stack(parts: Sequence["Counts"]) -> "Counts":
        """One Counts of all images, in order."""
        return Counts(*(np.concatenate([getattr(p, name) for p in parts]) for name in Counts.__dataclass_fields__))

    def take(self, images: np.ndarray) -> "Counts":
        """The counts of these images: numbers or a bool mask."""
        return Counts(*(getattr(self, name)[images] for name in Counts.__dataclass_fields__))

    @property
    def has_truth_N(self) -> np.ndarray:
        """Images that show the class at all. Its pixels are the same at every threshold: tp + fn."""
        return (self.tp_NT[:, 0] + self.fn_NT[:, 0]) > 0

    @property
    def is_clear_N(self) -> np.ndarray:
        """Images whose truth is known and does not show the class; not those that are ignored everywhere."""
        return ~self.has_truth_N & (self.pixels_N > 0)


def count(score_HW: Tensor, truth_HW: Tensor, class_id: int = 1, thresholds: np.ndarray = THRESHOLDS) -> Counts:
    """Counts of one image for one class, at all thresholds in one pass over the pixels.

    Args:
        score_HW: scores of the class, no NaN.
        truth_HW: class ids, same size; 255 is left out.
        thresholds: ascending.

    Raises:
        ValueError: score and truth differ in size, or a score is NaN.
    """
    check_scores(score_HW, truth_HW)
    valid = truth_HW != IGNORE_INDEX
    score, positive = score_HW[valid].float(), truth_HW[valid] == class_id
    levels = torch.as_tensor(thresholds, device=score.device).float()
    reached = torch.bucketize(score, levels, right=True)  # how many thresholds a pixel reaches
    bins = torch.bincount(reached + positive * (len(levels) + 1), minlength=2 * (len(levels) + 1)).reshape(2, -1)
    above_2T = at_or_above(bins).cpu().numpy()
    total = int(positive.sum())
    return Counts(above_2T[1:], above_2T[:1], total - above_2T[1:], np.array([positive.numel()]))


def check_scores(scores: Tensor, truth_HW: Tensor) -> None:
    """Raise ValueError unless scores (..., H, W) have the truth's size and no NaN."""
    if scores.shape[-2:] != truth_HW.shape:
        raise ValueError(f"scores {tuple(scores.shape)} and truth {tuple(truth_HW.shape)} must have the same size")
    if scores.isnan().any():
        raise ValueError(f"{int(scores.isnan().sum())} of {scores.numel()} scores are NaN: no threshold can be applied")


def at_or_above(bins: Tensor) -> Tensor:
    """Pixels by how many thresholds they reach, (..., T + 1) -> pixels that reach each of these, (..., T)."""
    return bins.flip(-1).cumsum(-1).flip(-1)[..., 1:]


def iou(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray) -> np.ndarray:
    """tp / (tp + fp + fn), element by element; 0 where nothing is predicted and nothing is there."""
    return tp / np.maximum(tp + fp + fn, 1)


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, element by element; NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)


def where_shown(value_T: np.ndarray, counts: Counts) -> np.ndarray:
    """The metric, or NaN at every threshold if no image shows the class: it would be 0 whatever is predicted."""
    return value_T if counts.has_truth_N.any() else np.full_like(value_T, np.nan, dtype=float)


def iou_per_image(counts: Counts) -> np.ndarray:
    """(N, T) IoU of the class in each image. Its mean over the images that show smoke is the smoke paper's mIoU.

    For an image that does not show the class it says nothing: 0.
    """
    return iou(counts.tp_NT, counts.fp_NT, counts.fn_NT)


def pooled_iou(counts: Counts) -> np.ndarray:
    """(T) IoU of the class, its pixels pooled over all images; NaN if none shows it."""
    return where_shown(iou(counts.tp_NT.sum(0), counts.fp_NT.sum(0), counts.fn_NT.sum(0)), counts)


def fg_bg_miou(counts: Counts) -> np.ndarray:
    """(T) mean of the pooled IoU of the class and of its background; NaN if no image shows the class."""
    tp, fp, fn = counts.tp_NT.sum(0), counts.fp_NT.sum(0), counts.fn_NT.sum(0)
    true_negative = counts.pixels_N.sum() - tp - fp - fn
    return where_shown((iou(tp, fp, fn) + iou(true_negative, fn, fp)) / 2, counts)


def precision(counts: Counts) -> np.ndarray:
    """(T) share of predicted pixels that are right; NaN where nothing is predicted, or if no image shows the class."""
    tp, fp = counts.tp_NT.sum(0), counts.fp_NT.sum(0)
    return where_shown(share(tp, tp + fp), counts)


def recall(counts: Counts) -> np.ndarray:
    """(T) share of the class's pixels that are predicted; NaN if no image shows it."""
    tp, fn = counts.tp_NT.sum(0), counts.fn_NT.sum(0)
    return share(tp, tp + fn)


def oracle_iou(counts: Counts) -> tuple[np.ndarray, np.ndarray]:
    """(N) best IoU of each image over THRESHOLDS and (N) the lowest threshold that gives it.

    It uses the truth of each image, so it is an upper bound for thresholds and never a result. If no threshold gives
    any overlap, the IoU is 0 and the threshold the lowest.
    """
    iou_NT = iou_per_image(counts)
    best_N = iou_NT.argmax(1)
    return iou_NT[np.arange(len(counts)), best_N], THRESHOLDS[best_N]


def false_alarm_area(counts: Counts) -> np.ndarray:
    """(T) mean share of pixels predicted in the images that do not show the class; NaN without such an image."""
    clear = counts.take(counts.is_clear_N)
    if len(clear) == 0:
        return np.full(counts.tp_NT.shape[1], np.nan)
    return (clear.fp_NT / clear.pixels_N[:, None]).mean(0)


def bootstrap_interval(
    value_N: np.ndarray, groups: Sequence[str], *, confidence: float = 0.95, resamples: int = 2000
) -> tuple[float, float]:
    """Percentile interval of a mean when whole groups (videos, scenes) are drawn anew with replacement.

    Frames of one group are alike, so drawing single frames would promise too narrow an interval.

    Args:
        value_N: a value of each image.
        groups: the group of each image.

    Returns:
        (low, high); both NaN if there is no image. With one group both are the mean: nothing is known about others.
    """
    if len(value_N) == 0:
        return float("nan"), float("nan")
    _, member_N = np.unique(np.asarray(groups), return_inverse=True)
    sums_G, sizes_G = np.bincount(member_N, weights=value_N), np.bincount(member_N)
    drawn_RG = np.random.default_rng(0).integers(0, len(sums_G), (resamples, len(sums_G)))
    return middle(sums_G[drawn_RG].sum(1) / sizes_G[drawn_RG].sum(1), confidence)


def middle(value_R: np.ndarray, confidence: float) -> tuple[float, float]:
    """(low, high) between which this share of the values lies, with equal shares outside; NaN without values."""
    if len(value_R) == 0:
        return float("nan"), float("nan")
    tail = (1 - confidence) / 2 * 100
    low, high = np.percentile(value_R, [tail, 100 - tail])
    return float(low), float(high)
