"""The interface between validation during training and a method, and what each rank counts of its images."""

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from launcher.config.whole import Config
from launcher.evaluation.galleries import Row
from shards.schema import ClassSet

LABELS = ""  # in place of a kind of map: metrics of the image labels
Figures = dict[str, dict[str, float | None]]  # {kind of map, or LABELS: {figure: value in [0, 1]; None: there is none}}


class Part(Protocol):
    """What a rank has counted. It is sent between processes, so nothing in it is on the device.

    Attributes:
        rows: {sample number: row of the gallery}.
    """

    rows: dict[int, Row]

    def extend(self, other: Any) -> None:
        """Add what another rank counted."""
        ...

    def figures(self) -> Figures:
        """Metrics over everything that was counted."""
        ...


class Judge(Protocol):
    """A method's maps compared with the truth of the validation split.

    Attributes:
        keeps_gallery: whether a run's folder keeps its last gallery, because no job's output shows the same.
        quoted: kinds of map whose headline metrics are printed.
    """

    keeps_gallery: ClassVar[bool]

    @property
    def quoted(self) -> Sequence[str]: ...

    def judge(self, numbers: Sequence[int], drawn: set[int]) -> Part:
        """Count each of these samples once, and draw those that are in `drawn`."""
        ...

    @staticmethod
    def known_figures(config: Config, class_set: ClassSet) -> dict[str, list[str]]:
        """{kind of map, or LABELS: metrics} of all metrics for which higher is better that a run with this config can
        give."""
        ...


def name_logged(kind: str, figure: str) -> str:
    """The name of a metric in the log of a run: val/KIND/FIGURE, or val/FIGURE for the image labels."""
    return "/".join(part for part in ("val", kind, figure) if part)
