"""Label maps of several classes counted: confusion, mIoU, and how far mIoU would move with other images.

Shapes: N images, G groups, C classes with background 0, R resamples, T thresholds.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from wsss.metrics.counts import THRESHOLDS, at_or_above, check_scores, middle
from wsss.tensors import IGNORE_INDEX

CHUNK = 100  # resamples at a time: bounds the memory of the draw to CHUNK x groups


def confusion_matrix(truth: Tensor, prediction: Tensor, num_classes: int) -> Tensor:
    """(C, C) int64 of [truth, prediction] over the pixels where neither is 255, without waiting for the device.

    Sum it over images and ranks.

    Raises:
        ValueError: an id that is neither 0..C-1 nor 255. On a GPU, which nothing waits for, the device stops instead.
    """
    truth, prediction = truth.int(), prediction.int()  # half the bytes of int64
    wanted = (truth != IGNORE_INDEX) & (prediction != IGNORE_INDEX)
    known = is_class_id(truth, num_classes) & is_class_id(prediction, num_classes)
    if truth.device.type == "cpu" and not known.all():
        raise ValueError(
            f"confusion matrix: truth has ids {truth.unique().tolist()}, prediction {prediction.unique().tolist()}; "
            f"wanted 0 to {num_classes - 1} or {IGNORE_INDEX}"
        )
    pair = torch.where(wanted, truth * num_classes + prediction, num_classes**2)
    pair = torch.where(known, pair, num_classes**2 + 1).flatten()  # beyond the counts: refused by the scatter
    if pair.device.type == "cpu":
        return pair.bincount(minlength=num_classes**2 + 1)[:-1].view(num_classes, num_classes)
    counts = torch.zeros(num_classes**2 + 1, dtype=torch.int64, device=pair.device)  # bincount would wait for its size
    return counts.scatter_add_(0, pair.long(), torch.ones_like(pair, dtype=torch.int64))[:-1].view(
        num_classes, num_classes
    )


def is_class_id(ids: Tensor, num_classes: int) -> Tensor:
    """Which of the ids are 0..C-1 or 255."""
    return ((ids >= 0) & (ids < num_classes)) | (ids == IGNORE_INDEX)


def class_iou(confusion_CC: Tensor) -> Tensor:
    """(C) float64 IoU; NaN for a class that is neither there nor predicted."""
    confusion_CC = confusion_CC.double()
    hit = confusion_CC.diagonal()
    return hit / (confusion_CC.sum(0) + confusion_CC.sum(1) - hit)


def mean_iou(confusion_CC: Tensor) -> float:
    """Mean IoU over the classes that the truth holds, background included; NaN without truth."""
    there = confusion_CC.sum(1) > 0
    return float(class_iou(confusion_CC)[there].mean())


def pixel_accuracy(confusion_CC: Tensor) -> float:
    """Share of pixels named right."""
    return float(confusion_CC.diagonal().sum().double() / confusion_CC.sum())


def mean_accuracy(confusion_CC: Tensor) -> float:
    """Mean recall over the classes that the truth holds."""
    recall_C = confusion_CC.diagonal().double() / confusion_CC.sum(1)
    return float(recall_C.nanmean())


def sums_by_group(sums: Sequence[np.ndarray], groups: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The names of the groups, sorted, and (G, 3, C) int64 of each: the sums of its images added up.

    Args:
        sums: of each image (3, C): pixels hit, in the truth, predicted; one at least.
    """
    names, member_N = np.unique(np.asarray(groups), return_inverse=True)
    sums_G3C = np.zeros((len(names), *np.shape(sums[0])), dtype=np.int64)
    for of_image, member in zip(sums, member_N.ravel(), strict=True):
        sums_G3C[member] += of_image
    return names.tolist(), sums_G3C


def resampled_mious(runs: Sequence[np.ndarray], resamples: int) -> np.ndarray:
    """(runs, R) mIoU when whole groups (photographs, videos) are drawn anew with replacement, the same for all runs;
    NaN where no labelled pixel is.

        mIoU of a resample = mean over the classes in its truth of  hit / (truth + predicted - hit)

    with the pixel counts summed over the drawn groups, so that a resample is judged as the whole set is. The draws
    follow from the number of groups alone.

    Args:
        runs: of each run (G, 3, C) of sums_by_group, of the same groups.
    """
    groups = len(runs[0])
    rng, found = np.random.default_rng(0), []
    for first in range(0, resamples, CHUNK):
        size = min(CHUNK, resamples - first)
        times_RG = rng.multinomial(groups, np.full(groups, 1 / groups), size=size).astype(float)
        found.append([mious_of_draws(times_RG, sums_G3C) for sums_G3C in runs])
    return np.concatenate(found, axis=1)


def mious_of_draws(times_RG: np.ndarray, sums_G3C: np.ndarray) -> np.ndarray:
    """(R) mIoU of a run, of how often each group was drawn; see resampled_mious."""
    sums_R3C = (times_RG @ sums_G3C.reshape(len(sums_G3C), -1).astype(float)).reshape(-1, *sums_G3C.shape[1:])
    hit_RC, truth_RC, predicted_RC = np.moveaxis(sums_R3C, 1, 0)
    iou_RC = hit_RC / np.maximum(truth_RC + predicted_RC - hit_RC, 1)
    there_RC = truth_RC > 0
    return (iou_RC * there_RC).sum(1) / np.where(there_RC.any(1), there_RC.sum(1), np.nan)


def bootstrap_miou(
    sums: Sequence[np.ndarray], groups: Sequence[str], *, confidence: float = 0.95, resamples: int = 1000
) -> tuple[float, float]:
    """Percentile interval of mIoU over whole groups, see resampled_mious. A resample without mIoU is left out.

    Args:
        sums: of each image (3, C): pixels hit, in the truth, predicted.

    Returns:
        (low, high); both NaN without a labelled pixel. With one group both are its mIoU.
    """
    if not len(sums):
        return float("nan"), float("nan")
    (miou_R,) = resampled_mious([sums_by_group(sums, groups)[1]], resamples)
    return middle(miou_R[~np.isnan(miou_R)], confidence)


def bootstrap_miou_gap(
    ours: Sequence[np.ndarray],
    theirs: Sequence[np.ndarray],
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
) -> tuple[float, float, float]:
    """Difference of two methods in mIoU, each a mean over its runs, and the percentile interval of that difference when
    the same groups are drawn for all of them.

    Args:
        ours, theirs: of each run (G, 3, C) of sums_by_group, of the same groups; one run each at least.

    Returns:
        (difference, low, high); NaN without a labelled pixel.

    Raises:
        ValueError: sums of other groups or classes.
    """
    if len({sums_G3C.shape for sums_G3C in (*ours, *theirs)}) > 1:
        raise ValueError("the runs were counted on other groups or classes: count them on the same images")
    runs = [*ours, *theirs]

    def gap_of(miou_NX: np.ndarray) -> np.ndarray:
        return np.mean(miou_NX[: len(ours)], axis=0) - np.mean(miou_NX[len(ours) :], axis=0)

    gap_R = gap_of(resampled_mious(runs, resamples))
    whole = gap_of(np.concatenate([mean_ious(sums_G3C.sum(axis=0)[None]) for sums_G3C in runs]))
    return float(whole), *middle(gap_R[~np.isnan(gap_R)], confidence)


def sums_at_thresholds(scores_nHW: Tensor, class_ids: Sequence[int], truth_HW: Tensor, num_classes: int) -> np.ndarray:
    """(T, 3, C) int64 pixels hit, in the truth and predicted, where the class of the highest score is predicted if it
    reaches one of THRESHOLDS, and otherwise the background, as refine.threshold.mask_of does; in one pass over the
    pixels.

    Args:
        scores_nHW: scores of the n classes, no NaN.
        class_ids: their ids 1..C-1.
        truth_HW: class ids; 255 is left out.

    Raises:
        ValueError: scores and truth differ in size, or a score is NaN.
    """
    check_scores(scores_nHW, truth_HW)
    levels = len(THRESHOLDS) + 1
    valid = truth_HW != IGNORE_INDEX
    truth = truth_HW[valid].long()
    sums = np.zeros((len(THRESHOLDS), 3, num_classes), dtype=np.int64)
    sums[:, 1] = truth.bincount(minlength=num_classes).numpy()
    sums[:, 2, 0], sums[:, 0, 0] = len(truth), int((truth == 0).sum())
    if len(class_ids) == 0:
        return sums
    score, best = scores_nHW[:, valid].float().max(dim=0)
    predicted = torch.tensor(class_ids)[best]
    reached = torch.bucketize(score, torch.as_tensor(THRESHOLDS).float(), right=True)  # how many a pixel reaches

    def above(chosen: Tensor) -> np.ndarray:
        """(T, C) of the chosen pixels those whose score reaches each threshold, by the class that it is of."""
        cells = (predicted * levels + reached)[chosen]
        bins = cells.bincount(minlength=num_classes * levels).view(num_classes, levels)
        return at_or_above(bins).T.numpy()

    of_class, on_background = above(torch.ones_like(truth, dtype=torch.bool)), above(truth == 0)
    sums[:, 2] += of_class
    sums[:, 2, 0] -= of_class.sum(1)
    sums[:, 0] += above(predicted == truth)
    sums[:, 0, 0] -= on_background.sum(1)
    return sums


def mean_ious(sums_T3C: np.ndarray) -> np.ndarray:
    """(T) mean IoU over the classes that the truth holds, of sums_at_thresholds; NaN without truth."""
    hit_TC, truth_TC, predicted_TC = np.moveaxis(sums_T3C, 1, 0)
    there_C = truth_TC[0] > 0
    if not there_C.any():
        return np.full(len(sums_T3C), np.nan)
    return (hit_TC / np.maximum(truth_TC + predicted_TC - hit_TC, 1))[:, there_C].mean(1)
