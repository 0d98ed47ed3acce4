"""Tallies of one source of predictions, image by image. Each process fills its own; then they are joined.

thresholds.Thresholds counts scores of one class, confusion.Confusion label maps of any classes, and
image_labels.ImageLabels class probabilities if there are no masks; confusion.ClassThresholds only chooses a threshold.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from shards.folder import ShardFolder
from shards.schema import IGNORE_INDEX, Box


class Truth(NamedTuple):
    """The truth about an image.

    Attributes:
        group: photograph, video or scene; a bootstrap draws images of one group together.
        mask_HW: class ids, 255 = ignore.
        regions: named boxes in which wrong predictions are measured separately.
        labelled: whether the image label names a class, in the mask or not.
        present: for each class, whether the image label names it.
    """

    key: str
    group: str
    mask_HW: np.ndarray
    regions: Mapping[str, list[Box]]
    labelled: bool = False
    present: tuple[bool, ...] = ()


def read_truth(shards: ShardFolder, number: int) -> Truth:
    """The truth of a sample; for label-only shards, whose masks are never read, all of its mask is 255."""
    present = tuple(map(bool, shards.image_label_NK[number]))
    key, group = shards.keys[number], shards.groups[number]
    if shards.index.supervision == "label":
        return Truth(key, group, np.full((1, 1), IGNORE_INDEX, np.uint8), {}, any(present), present)
    return Truth(key, group, shards.mask(number), shards.regions(number), any(present), present)


class Prediction(Protocol):
    """A source's prediction of one image."""

    @property
    def prob(self) -> float:
        """Probability that the image shows the first class."""
        ...

    @property
    def probs(self) -> tuple[float, ...] | None:
        """Probability of each class; None for label maps."""
        ...

    def score_at(self, size: tuple[int, int]) -> np.ndarray:
        """(H, W) float32, the highest score of any class."""
        ...

    def maps_at(self, size: tuple[int, int]) -> tuple[np.ndarray, Sequence[int]]:
        """(n, H, W) float32 scores and the ids of their n classes."""
        ...

    def label_at(self, size: tuple[int, int]) -> np.ndarray:
        """(H, W) uint8 class ids."""
        ...

    def draw_on(self, tile_HW3: np.ndarray) -> np.ndarray:
        """The image, scaled for display, with the prediction on it: its mask, or its map if it has none."""
        ...

    def draw_map(self, tile_HW3: np.ndarray) -> np.ndarray | None:
        """The same with its map; None for label maps."""
        ...


class Tally(Protocol):
    """Counts the images of one source."""

    def add(self, prediction: Prediction, truth: Truth) -> None:
        """Count one image."""
        ...

    def extend(self, other: Any) -> None:
        """Add what another process counted; its images come after one's own."""
        ...


class Best(NamedTuple):
    """The best threshold for some images, and their metric at it, in [0, 1]."""

    threshold: float
    value: float


class Chooser(Tally, Protocol):
    """A tally that chooses a threshold.

    Attributes:
        chooses_by: name of the metric that decides.
    """

    chooses_by: ClassVar[str]

    def best(self) -> Best | None:
        """The threshold to use elsewhere; None if the images cannot tell."""
        ...


class Measure(ABC):
    """A tally with metrics to report.

    Attributes:
        reads_maps: whether it counts maps, not only probabilities.
    """

    reads_maps: ClassVar[bool] = True

    @property
    @abstractmethod
    def images_without_truth(self) -> int:
        """Number of images whose mask says nothing: all of it is 255, or it lacks the class of the image label."""

    @abstractmethod
    def add(self, prediction: Prediction, truth: Truth) -> None: ...

    @abstractmethod
    def extend(self, other: Any) -> None: ...

    @abstractmethod
    def figures_at(self, threshold: float) -> dict[str, Any]:
        """Metrics in [0, 1] at a threshold, which changes nothing for label maps; None if a metric does not exist."""

    def bounds_and_curve(self) -> dict[str, Any]:
        """Bounds over all thresholds, and metrics at every threshold."""
        return {}

    @abstractmethod
    def classification(self) -> dict[str, float | None]:
        """Metrics of the class probabilities, see image_labels.label_figures; {} if there are none."""

    @abstractmethod
    def decisions(self) -> tuple[np.ndarray, np.ndarray]:
        """(N, K) probabilities, and whether the label or the mask shows each class."""

    @abstractmethod
    def label_details(self, classes: Sequence[str]) -> dict[str, Any]:
        """Metrics per class and reliability, see image_labels.label_details."""

    @abstractmethod
    def rows(self, thresholds: Mapping[str, float]) -> Iterator[dict[str, Any]]:
        """One row per image at each of the named thresholds."""
