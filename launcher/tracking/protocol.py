"""What training, validation, evaluation and the report hand their figures to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from PIL import Image


class Tracker(Protocol):
    """What training, validation, evaluation and the report hand their figures to."""

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def image(self, name: str, image: Image.Image, step: int) -> None: ...

    def artifact(self, path: Path) -> None:
        """Show a file as it is."""

    def model(self, path: Path, name: str, alias: str) -> None:
        """Show a trained network in one file as the newest version of a model, which the alias then means."""

    def tell(self, **about: Any) -> None:
        """Add to what there is to say of the run in words."""

    def close(self, status: str | None = "FINISHED", reason: str | None = None) -> bool:
        """End the run with a status (None: leave its status as it is) and, if it failed, with the reason; whether
        nothing is left to send."""


class NoTracker:
    """What other ranks hold: takes everything, does nothing."""

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def image(self, name: str, image: Image.Image, step: int) -> None: ...

    def artifact(self, path: Path) -> None: ...

    def model(self, path: Path, name: str, alias: str) -> None: ...

    def tell(self, **about: Any) -> None: ...

    def close(self, status: str | None = "FINISHED", reason: str | None = None) -> bool:
        return True
