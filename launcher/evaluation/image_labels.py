"""Class probabilities compared with image labels, for any number of classes: the metrics that need no mask.

Shapes: N images, K classes.
"""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from launcher.evaluation.figures import without_nan
from launcher.evaluation.measure import Measure, Prediction, Truth
from wsss.metrics import image_labels

PRESENT_PROB = 0.5  # an image whose class probability is lower is predicted not to show the class
HIGH = ("average_precision", "class_f1", "accuracy")  # metrics of image labels for which higher is better


@dataclass
class ImageLabels(Measure):
    """The probabilities and labels of every image.

    Attributes:
        classes: names of the K classes.
        probs, present: K probabilities per image, and whether its label names each class, image after image; flat
            arrays, since lists of numbers would take a hundred MB for COCO's 40,137 images and 80 classes.
    """

    reads_maps: ClassVar[bool] = False
    classes: tuple[str, ...] = ()
    keys: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    probs: "array[float]" = field(default_factory=lambda: array("d"))
    present: bytearray = field(default_factory=bytearray)

    def add(self, prediction: Prediction, truth: Truth) -> None:
        """Count one image. Raises ValueError unless every class has a probability; label maps have none."""
        if prediction.probs is None or len(prediction.probs) != len(truth.present):
            raise ValueError(f"{truth.key}: wanted a probability of each of {self.classes}, got {prediction.probs}")
        self.count(truth.key, truth.group, prediction.probs, truth.present)

    def count(self, key: str, group: str, probs: Sequence[float], present: Sequence[bool]) -> None:
        self.keys.append(key)
        self.groups.append(group)
        self.probs.extend(probs)
        self.present.extend(present)

    def extend(self, other: "ImageLabels") -> None:
        self.keys += other.keys
        self.groups += other.groups
        self.probs += other.probs
        self.present += other.present

    @property
    def images_without_truth(self) -> int:
        return 0  # every image has a label

    def figures_at(self, threshold: float) -> dict[str, Any]:
        """The metrics of `classification`; no map is read, so the threshold changes nothing."""
        return {**self.classification(), "images": len(self.keys)} if self.keys else {}

    def classification(self) -> dict[str, float | None]:
        return label_figures(*self.decisions()) if self.keys else {}

    def label_details(self, classes: Sequence[str]) -> dict[str, Any]:
        return label_details(*self.decisions(), classes) if self.keys else {}

    def decisions(self) -> tuple[np.ndarray, np.ndarray]:
        """(N, K) probabilities and labels."""
        shape = (len(self.keys), len(self.classes))
        return np.array(self.probs).reshape(shape), np.array(self.present, dtype=np.uint8).reshape(shape) > 0

    def rows(self, thresholds: Mapping[str, float]) -> Iterator[dict[str, Any]]:
        """One row per image, with p(NAME), the probability, and label(NAME), 1 if the label names it, of each class."""
        prob_NK, present_NK = self.decisions()
        for n, key in enumerate(self.keys):
            row: dict[str, Any] = {"key": key, "group": self.groups[n]}
            for name, prob, is_there in zip(self.classes, prob_NK[n].tolist(), present_NK[n], strict=True):
                row |= {f"p({name})": prob, f"label({name})": int(is_there)}
            yield row


def label_figures(prob_NK: np.ndarray, present_NK: np.ndarray) -> dict[str, float | None]:
    """Metrics over all classes: means over those that a label names, the share of the images with every class right,
    and the calibration error over all decisions. None if a metric does not exist."""
    named = present_NK.any(axis=0).nonzero()[0]
    seen_NK = prob_NK >= PRESENT_PROB
    precision = [image_labels.average_precision(prob_NK[:, k], present_NK[:, k]) for k in named]
    return without_nan({
        "average_precision": float(np.mean(precision)) if precision else float("nan"),
        "class_f1": mean_f1(prob_NK, present_NK, PRESENT_PROB),
        "accuracy": float((seen_NK == present_NK).all(axis=1).mean()),
        "calibration_error": image_labels.calibration_error(prob_NK.ravel(), present_NK.ravel()),
    })  # fmt: skip


def mean_f1(prob_NK: np.ndarray, present_NK: np.ndarray, gate: float) -> float:
    """F1 of predicting each class where its probability reaches the gate, as a mean over the classes that a label
    names; NaN if none does."""
    named = present_NK.any(axis=0).nonzero()[0]
    f1 = [image_labels.f1(prob_NK[:, k] >= gate, present_NK[:, k]) for k in named]
    return float(np.mean(f1)) if f1 else float("nan")


def label_details(prob_NK: np.ndarray, present_NK: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """{"classes": {name: its metrics and number of images}, "reliability": see wsss.metrics.image_labels}."""
    seen_NK = prob_NK >= PRESENT_PROB
    of_class = {
        name: {
            "average_precision": image_labels.average_precision(prob_NK[:, k], present_NK[:, k]),
            "f1": image_labels.f1(seen_NK[:, k], present_NK[:, k]),
            "images": int(present_NK[:, k].sum()),
        }
        for k, name in enumerate(classes)
    }
    parts = image_labels.reliability(prob_NK.ravel(), present_NK.ravel())
    reliability = [{"probability": said, "share": true, "decisions": count} for said, true, count in parts]
    return without_nan({"classes": of_class, "reliability": reliability})
