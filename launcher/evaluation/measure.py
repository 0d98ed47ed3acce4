"""What is counted of one source of predictions, image by image. Processes fill their own and join them.

thresholds.Thresholds of the scores of one class, confusion.Confusion of label maps of any classes,
image_labels.ImageLabels of class probabilities where there are no masks; confusion.ClassThresholds chooses alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from shards.folder import ShardFolder
from shards.schema import IGNORE_INDEX, Box


class Truth(NamedTuple):
    """What an image really shows.

    Attributes:
        group: photograph, video or scene: images of one group are drawn together in a bootstrap.
        mask_HW: class ids, 255 = ignore.
        regions: named boxes in which a wrong prediction is measured on its own.
        labelled: whether the image label names a class, be it in the mask or not.
        present: of each class, whether the image label names it.
    """

    key: str
    group: str
    mask_HW: np.ndarray
    regions: Mapping[str, list[Box]]
    labelled: bool = False
    present: tuple[bool, ...] = ()


def read_truth(shards: ShardFolder, number: int) -> Truth:
    """The truth of a sample; of label-only shards its mask is ignored everywhere and never read."""
    present = tuple(map(bool, shards.image_label_NK[number]))
    key, group = shards.keys[number], shards.groups[number]
    if shards.index.supervision == "label":
        return Truth(key, group, np.full((1, 1), IGNORE_INDEX, np.uint8), {}, any(present), present)
    return Truth(key, group, shards.mask(number), shards.regions(number), any(present), present)


class Prediction(Protocol):
    """What a source predicts of one image."""

    @property
    def prob(self) -> float:
        """Probability that the image shows the first class."""
        ...

    @property
    def probs(self) -> tuple[float, ...] | None:
        """Probability of each class; None of label maps."""
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
        """The image, scaled to be looked at, with the prediction on it: its mask, or its map where it has none."""
        ...

    def draw_map(self, tile_HW3: np.ndarray) -> np.ndarray | None:
        """The same with its map; None of label maps."""
        ...


class Tally(Protocol):
    """What counts the images of one source."""

    def add(self, prediction: Prediction, truth: Truth) -> None:
        """Count one image."""
        ...

    def extend(self, other: Any) -> None:
        """Join what another process counted, of images after one's own."""
        ...


class Best(NamedTuple):
    """The threshold that images choose, and the figure that they give at it, in [0, 1]."""

    threshold: float
    value: float


class Chooser(Tally, Protocol):
    """What a threshold is chosen by.

    Attributes:
        chooses_by: the figure that counts.
    """

    chooses_by: ClassVar[str]

    def best(self) -> Best | None:
        """The threshold to use elsewhere; None if the images cannot tell."""
        ...


class Measure(ABC):
    """A tally of which there are figures to report.

    Attributes:
        reads_maps: whether it counts maps at all, and not probabilities alone.
    """

    reads_maps: ClassVar[bool] = True

    @property
    @abstractmethod
    def images_without_truth(self) -> int:
        """Images whose mask says nothing: all of it is ignored, or it lacks the class that the image label names."""

    @abstractmethod
    def add(self, prediction: Prediction, truth: Truth) -> None: ...

    @abstractmethod
    def extend(self, other: Any) -> None: ...

    @abstractmethod
    def figures_at(self, threshold: float) -> dict[str, Any]:
        """Figures in [0, 1] at a threshold, which the predictions of label maps do not depend on; None where these
        images give none."""

    def bounds_and_curve(self) -> dict[str, Any]:
        """What a threshold can do at all."""
        return {}

    @abstractmethod
    def classification(self) -> dict[str, float | None]:
        """Figures of the class probabilities, see image_labels.label_figures; {} where there are none."""

    @abstractmethod
    def decisions(self) -> tuple[np.ndarray, np.ndarray]:
        """(N, K) probabilities, and whether the label, or the mask, shows each class."""

    @abstractmethod
    def label_details(self, classes: Sequence[str]) -> dict[str, Any]:
        """What stands behind them, by the names of the classes; see image_labels.label_details."""

    @abstractmethod
    def rows(self, thresholds: Mapping[str, float]) -> Iterator[dict[str, Any]]:
        """One row per image at each of the named thresholds."""
