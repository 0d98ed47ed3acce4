"""Label maps of any number of classes, counted over the images of a split.

Shapes: C classes with background 0, T thresholds, H x W pixels.
"""

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from launcher.evaluation.figures import without_nan
from launcher.evaluation.image_labels import ImageLabels
from launcher.evaluation.measure import Best, Measure, Prediction, Truth
from shards.schema import ClassSet
from wsss.metrics.confusion import (
    bootstrap_miou,
    class_iou,
    confusion_matrix,
    mean_accuracy,
    mean_iou,
    mean_ious,
    pixel_accuracy,
    sums_at_thresholds,
)
from wsss.metrics.counts import THRESHOLDS


class Sums(Sequence[np.ndarray]):
    """(3, C) int64 of each image, stored without zeros: an image has only a few of COCO's 81 classes."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.ends, self.places, self.values = array("q"), array("H"), array("q")

    def append(self, sums_3C: np.ndarray) -> None:
        flat = sums_3C.ravel()
        places = flat.nonzero()[0]
        self.places.extend(places.tolist())
        self.values.extend(flat[places].tolist())
        self.ends.append(len(self.places))

    def extend(self, other: "Sums") -> None:
        before = len(self.places)
        self.places.extend(other.places)
        self.values.extend(other.values)
        self.ends.extend(before + end for end in other.ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, n: Any) -> Any:
        """(3, C) of image n."""
        first, end = self.ends[n - 1] if n else 0, self.ends[n]
        sums = np.zeros(3 * self.num_classes, dtype=np.int64)
        sums[np.array(self.places[first:end], dtype=np.intp)] = self.values[first:end]
        return sums.reshape(3, self.num_classes)


@dataclass
class Confusion(Measure):
    """One confusion matrix of all images, and what a bootstrap of mIoU needs of each image.

    Attributes:
        keys, groups: the key and the group of each image.
        labels: the class probabilities of the images, if the predictions have some.
        sums: pixels of every class in each image: hit, in the truth, predicted.
    """

    class_set: ClassSet
    confusion_CC: Tensor = field(init=False)
    keys: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    sums: "Sums" = field(init=False)
    labels: ImageLabels = field(init=False)

    def __post_init__(self) -> None:
        num_classes = self.class_set.num_fg_classes + 1
        self.labels = ImageLabels(self.class_set.classes)
        self.sums = Sums(num_classes)
        self.confusion_CC = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def add(self, prediction: Prediction, truth: Truth) -> None:
        """Count one image; 255 in either map is left out. Raises ValueError if they differ in size."""
        label_HW = prediction.label_at(truth.mask_HW.shape)
        if label_HW.shape != truth.mask_HW.shape:
            raise ValueError(
                f"{truth.key}: mask {label_HW.shape} and truth {truth.mask_HW.shape} must have the same size"
            )
        mask_HW, label = torch.from_numpy(truth.mask_HW), torch.from_numpy(label_HW)
        confusion_CC = confusion_matrix(mask_HW, label, len(self.confusion_CC))
        self.confusion_CC += confusion_CC
        self.keys.append(truth.key)
        self.groups.append(truth.group)
        if prediction.probs is not None:
            self.labels.add(prediction, truth)
        self.sums.append(torch.stack([confusion_CC.diagonal(), confusion_CC.sum(1), confusion_CC.sum(0)]).numpy())

    def extend(self, other: "Confusion") -> None:
        self.confusion_CC += other.confusion_CC
        self.keys += other.keys
        self.groups += other.groups
        self.sums.extend(other.sums)
        self.labels.extend(other.labels)

    @property
    def images_without_truth(self) -> int:
        return sum(int(sums_3C[1].sum() == 0) for sums_3C in self.sums)

    def classification(self) -> dict[str, float | None]:
        return self.labels.classification()

    def decisions(self) -> tuple[np.ndarray, np.ndarray]:
        return self.labels.decisions()

    def label_details(self, classes: Sequence[str]) -> dict[str, Any]:
        return self.labels.label_details(classes)

    def figures_at(self, threshold: float) -> dict[str, Any]:
        """mIoU over the classes in the truth, its 95 % interval, IoU of every class. `threshold` changes nothing: class
        ids were counted, which were cut at one threshold or have none."""
        iou_C = class_iou(self.confusion_CC).tolist()
        return without_nan({
            "miou": mean_iou(self.confusion_CC),
            "miou_interval": list(bootstrap_miou(self.sums, self.groups)),
            "miou_groups": len({group for group, of in zip(self.groups, self.sums, strict=True) if of[1].any()}),
            "pixel_accuracy": pixel_accuracy(self.confusion_CC),
            "mean_accuracy": mean_accuracy(self.confusion_CC),
            "class_iou": dict(zip(("background", *self.class_set.classes), iou_C, strict=True)),
            "classes_in_truth": int((self.confusion_CC.sum(1) > 0).sum()),
            "background_share": float(self.confusion_CC[0].sum() / self.confusion_CC.sum()),  # of the pixels with truth
            "images": len(self.groups),
        })  # fmt: skip

    def rows(self, thresholds: Mapping[str, float]) -> Iterator[dict[str, Any]]:
        """One row per image: the share of its pixels with an object, the mean IoU over the classes of its objects (None
        if its truth shows none), and the share on which an object is wrongly predicted; the same at every threshold,
        see figures_at. Class probabilities and labels are added if there are any, see ImageLabels.rows."""
        of_labels: Iterable[dict[str, Any]] = self.labels.rows(thresholds) if self.labels.keys else repeat({})
        for n, of_label in zip(range(len(self.keys)), of_labels, strict=False):
            key, group, (hit_C, truth_C, predicted_C) = self.keys[n], self.groups[n], self.sums[n]
            there = truth_C[1:] > 0
            iou_n = hit_C[1:][there] / (truth_C + predicted_C - hit_C)[1:][there]
            iou = round(float(iou_n.mean()), 5) if there.any() else None
            area = int(truth_C[1:].sum()) / int(truth_C.sum()) if truth_C.any() else None
            wrong = int((predicted_C - hit_C)[1:].sum()) / int(truth_C.sum()) if truth_C.any() else None
            ious = {f"iou_{name}": iou for name in thresholds}
            areas = {f"false_area_{name}": None if wrong is None else round(wrong, 5) for name in thresholds}
            yield {"key": key, "group": group, "truth_area": area, **ious, **areas, **of_label}


@dataclass
class ClassThresholds:
    """Scores of several classes at every threshold, to choose one threshold for all of them.

    Attributes:
        sums_T3C: over all images, see sums_at_thresholds.
    """

    chooses_by: ClassVar[str] = "miou"

    class_set: ClassSet
    sums_T3C: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.sums_T3C = np.zeros((len(THRESHOLDS), 3, self.class_set.num_fg_classes + 1), dtype=np.int64)

    def add(self, prediction: Prediction, truth: Truth) -> None:
        scores_nHW, class_ids = prediction.maps_at(truth.mask_HW.shape)
        mask_HW = torch.from_numpy(truth.mask_HW)
        self.sums_T3C += sums_at_thresholds(torch.from_numpy(scores_nHW), class_ids, mask_HW, self.sums_T3C.shape[2])

    def extend(self, other: "ClassThresholds") -> None:
        self.sums_T3C += other.sums_T3C

    def best(self) -> Best | None:
        """The threshold with the best mIoU; None if no image shows a class."""
        if not self.sums_T3C[0, 1, 1:].any():
            return None
        miou_T = mean_ious(self.sums_T3C)
        return Best(float(THRESHOLDS[miou_T.argmax()]), float(miou_T.max()))
