"""Masks of several classes counted: confusion, mIoU, and how far mIoU would move with other images.

Shapes: N images, G groups, K foreground classes, C = K + 1 with background 0, R resamples, H x W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shards.schema import IGNORE_INDEX, ClassSet
from wsss import metrics

CHUNK = 100  # resamples at a time: bounds the memory of the draw to CHUNK x groups


def confusion_of(truth_HW: Tensor, label_HW: Tensor, num_classes: int) -> Tensor:
    """(C, C) int64 of [truth, label] over the pixels where neither is 255, without waiting for the device."""
    wanted = (truth_HW != IGNORE_INDEX) & (label_HW != IGNORE_INDEX)
    pair = torch.where(wanted, truth_HW.long() * num_classes + label_HW, num_classes**2).flatten()
    counts = torch.zeros(num_classes**2 + 1, dtype=torch.int64, device=pair.device)
    return counts.scatter_add_(0, pair, torch.ones_like(pair))[:-1].view(num_classes, num_classes)


def label_f1(cls_logits_BK: Tensor, image_label_BK: Tensor) -> Tensor:
    """(B) float64 F1 between the labels of an image and the classes whose logit is above 0; 0 where both are empty.

        2 TP / (predicted + labelled)

    Source: ToCo's "cls score" (spec msee 3; golden mlf1).
    """
    predicted_BK, true_BK = cls_logits_BK > 0, image_label_BK > 0
    both_B = (predicted_BK & true_BK).sum(dim=1)
    return 2 * both_B.double() / (predicted_BK.sum(dim=1) + true_BK.sum(dim=1)).clamp(min=1)


@dataclass
class MaskTally:
    """One confusion matrix of all images, and of each image what a bootstrap of mIoU needs.

    Attributes:
        groups: the group of each image.
        sums: of each image (3, C) int64: pixels hit, in the truth, and predicted, of every class.
    """

    class_set: ClassSet
    confusion_CC: Tensor = field(init=False)
    groups: list[str] = field(default_factory=list)
    sums: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        num_classes = self.class_set.num_fg_classes + 1
        self.confusion_CC = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def add(self, label_HW: np.ndarray, truth_HW: np.ndarray, group: str) -> None:
        """Count one image; 255 in either map is left out."""
        if label_HW.shape != truth_HW.shape:
            raise ValueError(f"mask {label_HW.shape} and truth {truth_HW.shape} must have one size")
        truth, label = torch.from_numpy(truth_HW), torch.from_numpy(label_HW)
        confusion_CC = metrics.confusion_matrix(truth, label, len(self.confusion_CC))
        self.confusion_CC += confusion_CC
        self.groups.append(group)
        self.sums.append(torch.stack([confusion_CC.diagonal(), confusion_CC.sum(1), confusion_CC.sum(0)]).numpy())

    def extend(self, other: "MaskTally") -> None:
        """Join what another process counted."""
        self.confusion_CC += other.confusion_CC
        self.groups += other.groups
        self.sums += other.sums

    def figures(self) -> dict[str, Any]:
        """Figures in [0, 1]: mIoU over the classes that the truth holds, its 95 % interval, IoU of every class."""
        iou_C = metrics.class_iou(self.confusion_CC).tolist()
        return {
            "miou": metrics.mean_iou(self.confusion_CC),
            "miou_interval": list(bootstrap_miou(self.sums, self.groups)),
            "pixel_accuracy": metrics.pixel_accuracy(self.confusion_CC),
            "mean_accuracy": metrics.mean_accuracy(self.confusion_CC),
            "class_iou": dict(zip(("background", *self.class_set.classes), iou_C, strict=True)),
            "classes_in_truth": int((self.confusion_CC.sum(1) > 0).sum()),
            "images": len(self.groups),
        }


def bootstrap_miou(
    sums: Sequence[np.ndarray],
    groups: Sequence[str],
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of mIoU when whole groups (photographs, videos) are drawn anew with replacement.

        mIoU of a resample = mean over the classes in its truth of  hit / (truth + predicted - hit)

    with the pixel counts summed over the drawn groups, so that a resample is judged as the whole set is.

    Args:
        sums: of each image (3, C): pixels hit, in the truth, predicted.

    Returns:
        (low, high); both NaN without an image. With one group both are its mIoU.
    """
    if not sums:
        return float("nan"), float("nan")
    _, member_N = np.unique(np.asarray(groups), return_inverse=True)
    of_group_GX = np.zeros((member_N.max() + 1, sums[0].size))
    np.add.at(of_group_GX, member_N, np.stack(sums).reshape(len(sums), -1))
    rng, found = np.random.default_rng(seed), []
    for first in range(0, resamples, CHUNK):
        size = min(CHUNK, resamples - first)
        times_RG = rng.multinomial(len(of_group_GX), np.full(len(of_group_GX), 1 / len(of_group_GX)), size=size)
        hit_RC, truth_RC, predicted_RC = np.moveaxis((times_RG @ of_group_GX).reshape(size, *sums[0].shape), 1, 0)
        iou_RC = hit_RC / np.maximum(truth_RC + predicted_RC - hit_RC, 1)
        there_RC = truth_RC > 0
        found.append((iou_RC * there_RC).sum(1) / np.maximum(there_RC.sum(1), 1))
    tail = (1 - confidence) / 2 * 100
    low, high = np.percentile(np.concatenate(found), [tail, 100 - tail])
    return float(low), float(high)
