"""What validation while training asks of a method, and of the counts that a rank makes of its share of the images."""

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from launcher.config.whole import Config
from launcher.evaluation.galleries import Row
from shards.schema import ClassSet

LABELS = ""  # stands in the place of a kind of map for figures of the image labels
Figures = dict[str, dict[str, float | None]]  # {kind of map, or LABELS: {figure: value in [0, 1]; None: there is none}}


class Part(Protocol):
    """What a rank has counted; it travels between processes, so nothing in it is on the device.

    Attributes:
        rows: {sample number: row of the gallery}.
    """

    rows: dict[int, Row]

    def extend(self, other: Any) -> None:
        """Join what another rank counted."""
        ...

    def figures(self) -> Figures:
        """Of all that was counted."""
        ...


class Judge(Protocol):
    """A method's maps against the truth of the validation split.

    Attributes:
        keeps_gallery: whether a run's folder keeps its last gallery, since no output of a job shows what is on it.
        quoted: kinds of map whose headline figures are printed.
    """

    keeps_gallery: ClassVar[bool]

    @property
    def quoted(self) -> Sequence[str]: ...

    def judge(self, numbers: Sequence[int], drawn: set[int]) -> Part:
        """Count these samples, each once, and draw those of them that are in `drawn`."""
        ...

    @staticmethod
    def known_figures(config: Config, class_set: ClassSet) -> dict[str, list[str]]:
        """{kind of map, or LABELS: figures that should be high} of all that a run with this config can give."""
        ...


def name_logged(kind: str, figure: str) -> str:
    """What a figure is called in the log of a run: val/KIND/FIGURE, or val/FIGURE of the image labels."""
    return "/".join(part for part in ("val", kind, figure) if part)
