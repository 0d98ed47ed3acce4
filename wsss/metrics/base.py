"""What a package offers as a metric: counts of predicted and true masks that add up over images and processes."""

import inspect
from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from wsss.registry import Registry


class Metric(ABC):
    """A metric of masks that a package offers (entry points of wsss.metrics), counted beside ours.

    It starts empty, with the names of the classes, whose ids are 1..K: `__init__(self, classes, *, options)`.
    Keyword-only arguments with types are its options in the YAML. Each process counts its own images, so its attributes
    must be picklable.

    Attributes:
        heading: of its column.
        meaning: in one sentence.
        higher_is_better: its direction; train.keep_best accepts only metrics for which this is True.
    """

    heading: ClassVar[str]
    meaning: ClassVar[str]
    higher_is_better: ClassVar[bool] = True

    @abstractmethod
    def update(self, prediction_HW: np.ndarray, truth_HW: np.ndarray) -> None:
        """Count one image: uint8 class ids, 0 = background, 255 = ignored; both have the size of the image."""

    @abstractmethod
    def merge(self, other: "Metric") -> None:
        """Add what another process counted with the same options."""

    @abstractmethod
    def compute(self) -> float | None:
        """The value over all counted images, in [0, 1] (shown in percent); None if these images give none."""


def no_metric(thing: object) -> str:
    """What is wrong with what a package offers as a metric; "" if nothing."""
    if not (inspect.isclass(thing) and issubclass(thing, Metric)):
        return f"is {thing!r}; wanted a subclass of Metric"
    lacking = [name for name in ("heading", "meaning") if not isinstance(getattr(thing, name, None), str)]
    lacking += sorted(thing.__abstractmethods__)
    return f"({thing.__name__}) lacks {', '.join(lacking)}" if lacking else ""


METRICS: Registry[type[Metric]] = Registry("wsss.metrics", {}, no_metric)
