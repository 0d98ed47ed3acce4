"""What is counted of one source of predictions, image by image. Processes fill their own and join them.

Two measures: thresholds.Thresholds of the scores of one class, confusion.Confusion of label maps of any classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from shards.folder import ShardFolder
from shards.schema import Box


class Truth(NamedTuple):
    """What an image really shows.

    Attributes:
        group: photograph, video or scene: images of one group are drawn together in a bootstrap.
        mask_HW: class ids, 255 = ignore.
        regions: named boxes in which a wrong prediction is measured on its own.
        labelled: whether the image label names a class, be it in the mask or not.
    """

    key: str
    group: str
    mask_HW: np.ndarray
    regions: Mapping[str, list[Box]]
    labelled: bool = False


def read_truth(shards: ShardFolder, number: int) -> Truth:
    """The truth of a sample of pixel shards."""
    labelled = bool(shards.image_label_NK[number].any())
    return Truth(shards.keys[number], shards.groups[number], shards.mask(number), shards.regions(number), labelled)


class Prediction(Protocol):
    """What a source predicts of one image."""

    @property
    def prob(self) -> float:
        """Probability that the image shows the first class."""
        ...

    def score_at(self, size: tuple[int, int]) -> np.ndarray:
        """(H, W) float32, the highest score of any class."""
        ...

    def label_at(self, size: tuple[int, int]) -> np.ndarray:
        """(H, W) uint8 class ids."""
        ...

    def draw_on(self, image_HW3: np.ndarray) -> np.ndarray:
        """The image with the prediction on it."""
        ...


class Measure(ABC):
    """Counts of one source.

    Attributes:
        has_thresholds: whether `figures_at` depends on the threshold, so that one is worth choosing.
    """

    has_thresholds: ClassVar[bool] = False

    @property
    @abstractmethod
    def images_without_truth(self) -> int:
        """Images whose mask says nothing: all of it is ignored, or it lacks the class that the image label names."""

    @abstractmethod
    def add(self, prediction: Prediction, truth: Truth) -> None:
        """Count one image."""

    @abstractmethod
    def extend(self, other: Any) -> None:
        """Join what another process counted, of images after one's own."""

    @abstractmethod
    def figures_at(self, threshold: float) -> dict[str, Any]:
        """Figures in [0, 1] at a threshold, which the predictions of label maps do not depend on; None where these
        images give none."""

    def best_threshold(self) -> float | None:
        """The threshold to use elsewhere; None if the images cannot tell. Of measures that have thresholds."""
        raise NotImplementedError

    def bounds_and_curve(self) -> dict[str, Any]:
        """What a threshold can do at all."""
        return {}

    def classification(self) -> dict[str, float | None]:
        """Figures of the class probabilities."""
        return {}

    def rows(self, thresholds: Mapping[str, float]) -> Iterator[dict[str, Any]]:
        """One row per image at each of the named thresholds."""
        return iter(())
