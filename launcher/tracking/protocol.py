"""The interface to which training, validation, evaluation and the report give their metrics."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from PIL import Image


class Tracker(Protocol):
    """Takes the metrics, pictures and files of a run."""

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def image(self, name: str, image: Image.Image, step: int) -> None: ...

    def artifact(self, path: Path) -> None:
        """Show a file as it is."""

    def model(self, path: Path, name: str, alias: str) -> None:
        """Show a trained network in one file as the newest version of a model, to which the alias then points."""

    def tell(self, **about: Any) -> None:
        """Add to the description of the run."""

    def close(self, status: str | None = "FINISHED", reason: str | None = None) -> bool:
        """End the run with a status (None: keep its status) and, if it failed, with the reason; returns whether
        nothing is left to send."""


class NoTracker:
    """The tracker of all ranks but rank 0: takes everything, does nothing."""

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def image(self, name: str, image: Image.Image, step: int) -> None: ...

    def artifact(self, path: Path) -> None: ...

    def model(self, path: Path, name: str, alias: str) -> None: ...

    def tell(self, **about: Any) -> None: ...

    def close(self, status: str | None = "FINISHED", reason: str | None = None) -> bool:
        return True
