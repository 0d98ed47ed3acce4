"""The settings of a prediction, and where each comes from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from launcher.errors import ConfigError
from launcher.predict.model import Model
from launcher.predict.views import Looked, Scale, look
from shards.tars import sha256_of
from wsss.refine.chain import Step

Normalise = Literal["frame", "clip"]


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """The options that the user gave; None = the default, which depends on the model."""

    kind: str | None = None
    threshold: float | None = None
    gate: float | None = None
    view: str = "auto"
    scale: float | None = None
    refine: str = "none"
    normalise: str | None = None
    ignore: Path | None = None
    every_s: float | None = None
    smooth_s: float | None = None
    heat: bool = False
    batch_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings that determine the pixels of a prediction.

    Attributes:
        kind: of map.
        threshold: a class is drawn where its score reaches this; None = where it is likelier than the background, for
            maps that are probabilities.
        gate: a class with a lower probability is not drawn.
        kept: (H, W), False in the ignored area; None = nothing is ignored.
        origins: {setting: where its value comes from}.
    """

    kind: str
    threshold: float | None
    gate: float
    scale: Scale
    chain: tuple[Step, ...]
    normalise: Normalise
    every_s: float | None
    smooth_s: float
    heat: bool
    batch_size: int
    kept: np.ndarray | None = None
    ignore: Path | None = None
    refine: str = "none"
    origins: Mapping[str, str] = field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """What differs whenever a mask could differ."""
        return {
            **{name: getattr(self, name) for name in ("kind", "threshold", "gate", "refine", "normalise", "every_s")},
            **{name: getattr(self, name) for name in ("smooth_s", "heat")},
            "view": self.scale.describe(),
            "ignore": None if self.ignore is None else sha256_of(self.ignore),
        }

    def describe(self) -> list[str]:
        """All settings as lines of text."""
        threshold = "likelier than the background" if self.threshold is None else f"{self.threshold:.2f}"
        values = {"kind": self.kind, "threshold": threshold, "gate": f"{self.gate:.2f}", "view": self.scale.describe()}
        values |= {"refine": self.refine} if self.refine != "none" else {}
        values |= {"ignore": str(self.ignore)} if self.ignore else {}
        return [f"{name} {value} ({self.origins[name]})" for name, value in values.items()]

    def describe_clips(self) -> list[str]:
        """The settings that only concern clips."""
        every = "every frame" if self.every_s is None else f"a frame every {self.every_s:g} s"
        smooth = f", maps smoothed over {self.smooth_s:g} s" if self.smooth_s else ""
        return [f"clips: {every}, maps normalised over the {self.normalise} ({self.origins['normalise']}){smooth}"]


def look_as(settings: Settings, model: Model, images: Sequence[np.ndarray]) -> list[Looked]:
    """The network's maps and probabilities of frames (H, W, 3) uint8; see look."""
    return look(model, settings.kind, settings.scale, images, settings.kept, settings.batch_size)


def seconds_of(option: str, text: str) -> float:
    """`2s`, `0.5 s` or `2` -> seconds; raises ConfigError, which names the option, for anything else."""
    try:
        return float(text.strip().removesuffix("s"))
    except ValueError:
        raise ConfigError(f"{option} {text}: wanted seconds, such as 1s or 0.5s") from None
