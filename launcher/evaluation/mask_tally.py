"""Masks of several classes counted over the images of a split.

Shapes: C classes with background 0, H x W pixels.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shards.schema import ClassSet
from wsss.metrics.confusion import bootstrap_miou, class_iou, confusion_matrix, mean_accuracy, mean_iou, pixel_accuracy


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
        confusion_CC = confusion_matrix(truth, label, len(self.confusion_CC))
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
        iou_C = class_iou(self.confusion_CC).tolist()
        return {
            "miou": mean_iou(self.confusion_CC),
            "miou_interval": list(bootstrap_miou(self.sums, self.groups)),
            "pixel_accuracy": pixel_accuracy(self.confusion_CC),
            "mean_accuracy": mean_accuracy(self.confusion_CC),
            "class_iou": dict(zip(("background", *self.class_set.classes), iou_C, strict=True)),
            "classes_in_truth": int((self.confusion_CC.sum(1) > 0).sum()),
            "images": len(self.groups),
        }
