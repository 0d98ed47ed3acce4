"""Scores of one foreground class (smoke), counted at every threshold, image by image."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch

from launcher.evaluation.figures import AREA, GATED, without_nan
from launcher.evaluation.image_labels import PRESENT_PROB, label_details, label_figures
from launcher.evaluation.measure import Best, Measure, Prediction, Truth
from shards.schema import IGNORE_INDEX, Box
from wsss.metrics import counts as metrics
from wsss.metrics.counts import THRESHOLDS, Counts


@dataclass
class Thresholds(Measure):
    """Counts of every image at every threshold.

    Attributes:
        probs: class probability of each image.
        labelled: for each image, whether its label names the class.
        parts: counts of all images, in order, in one or more pieces.
        region_parts, region_probs: {region: counts inside its boxes, or class probabilities} of the images with boxes.
    """

    chooses_by: ClassVar[str] = "per_image_iou"

    keys: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    probs: list[float] = field(default_factory=list)
    labelled: list[bool] = field(default_factory=list)
    parts: list[Counts] = field(default_factory=list)
    region_parts: dict[str, list[Counts]] = field(default_factory=dict)
    region_probs: dict[str, list[float]] = field(default_factory=dict)

    def add(self, prediction: Prediction, truth: Truth) -> None:
        score_HW = torch.from_numpy(prediction.score_at(truth.mask_HW.shape))
        mask_HW = torch.from_numpy(truth.mask_HW)
        self.keys.append(truth.key)
        self.groups.append(truth.group)
        self.probs.append(prediction.prob)
        self.labelled.append(truth.labelled)
        self.parts.append(metrics.count(score_HW, mask_HW))
        for name, boxes in truth.regions.items():
            if boxes:
                self.region_parts.setdefault(name, []).append(metrics.count(score_HW, inside_boxes(boxes, mask_HW)))
                self.region_probs.setdefault(name, []).append(prediction.prob)

    def extend(self, other: "Thresholds") -> None:
        self.keys += other.keys
        self.groups += other.groups
        self.probs += other.probs
        self.labelled += other.labelled
        self.parts.append(join_parts(other.parts))  # one piece per shard takes a fifth of the memory of one per image
        for name, parts in other.region_parts.items():
            self.region_parts.setdefault(name, []).extend(parts)
            self.region_probs.setdefault(name, []).extend(other.region_probs[name])

    @property
    def counts(self) -> Counts:
        """Counts of all images."""
        return join_parts(self.parts)

    @property
    def known_N(self) -> np.ndarray:
        """Whether each image's mask says where the class is, or that it is nowhere."""
        counts = self.counts
        return counts.has_truth_N | (counts.is_clear_N & ~np.array(self.labelled, dtype=bool))

    @property
    def images_without_truth(self) -> int:
        return int((~self.known_N).sum())

    def best(self) -> Best | None:
        """The threshold with the best mean per-image IoU over the images that show the class; None if none does."""
        counts = self.counts
        shown = counts.take(counts.has_truth_N)
        if not len(shown):
            return None
        iou_T = metrics.iou_per_image(shown).mean(0)
        return Best(float(THRESHOLDS[iou_T.argmax()]), float(iou_T.max()))

    def figures_at(self, threshold: float) -> dict[str, Any]:
        """Metrics at a threshold, which is rounded to the nearest hundredth. Areas are shares of the image. Images
        without truth are left out."""
        t, known_N = nearest(threshold), self.known_N
        counts, gated = (counts.take(known_N) for counts in (self.counts, gate(self.counts, self.probs)))
        shown_N = counts.has_truth_N
        iou_N = metrics.iou_per_image(counts)[shown_N, t]
        gated_iou_N = metrics.iou_per_image(gated)[shown_N, t]
        groups = np.array(self.groups)[known_N][shown_N].tolist()
        low, high = metrics.bootstrap_interval(iou_N, groups)
        figures: dict[str, Any] = {
            "threshold": float(THRESHOLDS[t]),
            "per_image_iou": float(iou_N.mean()) if len(iou_N) else float("nan"),
            "per_image_iou_interval": [low, high],
            "per_image_iou_groups": len(set(groups)),
            "per_image_iou_gated": float(gated_iou_N.mean()) if len(iou_N) else float("nan"),
            "pooled_iou": float(metrics.pooled_iou(counts)[t]),
            "fg_bg_miou": float(metrics.fg_bg_miou(counts)[t]),
            "precision": float(metrics.precision(counts)[t]),
            "recall": float(metrics.recall(counts)[t]),
            "false_alarm_area": float(metrics.false_alarm_area(counts)[t]),
            "false_alarm_area_gated": float(metrics.false_alarm_area(gated)[t]),
        }
        for name, parts in self.region_parts.items():
            inside = join_parts(parts)
            figures[name + AREA] = float(metrics.false_alarm_area(inside)[t])
            figures[name + AREA + GATED] = float(metrics.false_alarm_area(gate(inside, self.region_probs[name]))[t])
        return without_nan(figures)

    def bounds_and_curve(self) -> dict[str, Any]:
        """Bounds that no honestly chosen threshold can exceed, and the metrics at every threshold."""
        counts, best = self.counts.take(self.known_N), self.best()
        shown = counts.take(counts.has_truth_N)
        mean_iou_T = metrics.iou_per_image(shown).mean(0) if len(shown) else np.full(len(THRESHOLDS), np.nan)
        oracle_N, _ = metrics.oracle_iou(shown)
        curve = {
            "per_image_iou": mean_iou_T,
            "pooled_iou": metrics.pooled_iou(counts),
            "precision": metrics.precision(counts),
            "recall": metrics.recall(counts),
            "false_alarm_area": metrics.false_alarm_area(counts),
        }
        return without_nan({
            "images": len(self.counts),
            "images_with_class": len(shown),
            "groups": len(set(self.groups)),
            "best_on_val": {"threshold": best and best.threshold, "per_image_iou": float(mean_iou_T.max())},
            "oracle_per_image_iou": float(oracle_N.mean()) if len(shown) else float("nan"),
            "curve": {name: value_T.round(5).tolist() for name, value_T in curve.items()},
        })  # fmt: skip

    def classification(self) -> dict[str, float | None]:
        """How well the class probabilities separate images with the class (by label or mask) from those without."""
        return label_figures(*self.decisions())

    def label_details(self, classes: Sequence[str]) -> dict[str, Any]:
        return label_details(*self.decisions(), classes)

    def decisions(self) -> tuple[np.ndarray, np.ndarray]:
        """(N, 1) probabilities, and whether the label or the mask shows the class."""
        truth_N = self.counts.has_truth_N | np.array(self.labelled, dtype=bool)
        return np.array(self.probs)[:, None], truth_N[:, None]

    def rows(self, thresholds: Mapping[str, float]) -> Iterator[dict[str, Any]]:
        """One row per image with its IoU and wrongly predicted area at each of the named thresholds. IoU is None if the
        image does not show the class; both are None if its truth is not known."""
        counts, known_N = self.counts, self.known_N
        iou_NT, shown_N = metrics.iou_per_image(counts), counts.has_truth_N
        for n, key in enumerate(self.keys):
            row = {"key": key, "group": self.groups[n], "probability": self.probs[n]}
            pixels = int(counts.pixels_N[n])
            row["truth_area"] = int(counts.tp_NT[n, 0] + counts.fn_NT[n, 0]) / pixels if known_N[n] else None
            for name, threshold in thresholds.items():
                t = nearest(threshold)
                row[f"iou_{name}"] = round(float(iou_NT[n, t]), 5) if shown_N[n] else None
                row[f"false_area_{name}"] = round(float(counts.fp_NT[n, t]) / pixels, 5) if known_N[n] else None
            yield row


def gate(counts: Counts, probs: list[float]) -> Counts:
    """Counts of the same images if nothing is predicted where the class probability is below PRESENT_PROB."""
    shown = np.array(probs)[:, None] >= PRESENT_PROB
    truth_NT = counts.tp_NT + counts.fn_NT
    return Counts(counts.tp_NT * shown, counts.fp_NT * shown, truth_NT - counts.tp_NT * shown, counts.pixels_N)


def join_parts(parts: list[Counts]) -> Counts:
    """All pieces joined; the result replaces them in `parts`, so that they are joined only once."""
    if len(parts) > 1:
        parts[:] = [Counts.stack(parts)]
    return parts[0]


def nearest(threshold: float) -> int:
    """Index of the nearest of THRESHOLDS."""
    return int(np.abs(THRESHOLDS - threshold).argmin())


def inside_boxes(boxes: list[Box], truth_HW: torch.Tensor) -> torch.Tensor:
    """Truth that counts only the background pixels inside the boxes; all others are 255."""
    region_HW = torch.zeros_like(truth_HW, dtype=torch.bool)
    for y0, y1, x0, x1 in boxes:
        region_HW[y0:y1, x0:x1] = True
    return torch.where(region_HW & (truth_HW == 0), 0, IGNORE_INDEX)
