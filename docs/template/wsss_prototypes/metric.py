"""A metric of masks, counted in validation and by `wsss evaluate` beside those of wsss."""

import numpy as np

from wsss.metrics.base import Metric


class HitRate(Metric):
    """Of all classes that images show, the share of which at least `share` of the pixels are predicted.

    Args:
        share: in (0, 1].
    """

    heading = "hit rate"
    meaning = "share of the classes shown of which enough pixels are found"

    def __init__(self, classes: tuple[str, ...], *, share: float = 0.5) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"hit_rate: share is {share}; wanted one in (0, 1]")
        self.share, self.hits, self.shown = share, 0, 0

    def update(self, prediction_HW: np.ndarray, truth_HW: np.ndarray) -> None:
        for class_id in set(np.unique(truth_HW)) - {0, 255}:
            self.shown += 1
            self.hits += bool((prediction_HW[truth_HW == class_id] == class_id).mean() >= self.share)

    def merge(self, other: "HitRate") -> None:
        self.hits += other.hits
        self.shown += other.shown

    def compute(self) -> float | None:
        return self.hits / self.shown if self.shown else None
