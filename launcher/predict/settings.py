"""What a prediction is made with, each setting with where it comes from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from launcher.config.options import Named
from launcher.config.sections import RefineConfig
from launcher.errors import ConfigError, user_error_as
from launcher.evaluation.thresholds import PRESENT_PROB
from launcher.jobs.refine import resolve_chain
from launcher.predict.model import Model
from launcher.predict.views import Scale, read_maps
from shards.schema import DataError, decode_image
from shards.sources.text import read_bytes
from shards.tars import sha256_of
from wsss.maps.cam import PROBABILITIES
from wsss.methods import METHODS
from wsss.refine import CUED, REFINERS
from wsss.refine.chain import Step

USELESS = 0.01  # a threshold that so little reaches says that tuning found nothing
LONGEST_SMOOTH_S = 60.0  # its maps are in memory
Normalise = Literal["frame", "clip"]


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the user asks for; None = the default, which depends on the model."""

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
    """What the pixels of a prediction depend on.

    Attributes:
        kind: of map.
        threshold: a class is drawn where its score reaches this; None = where it is likelier than the background, in
            maps that are probabilities.
        gate: a class of a lower probability is nowhere.
        kept: (H, W) False where nothing is to be found; None = everywhere.
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
        """What differs whenever a mask could."""
        return {
            **{name: getattr(self, name) for name in ("kind", "threshold", "gate", "refine", "normalise", "every_s")},
            **{name: getattr(self, name) for name in ("smooth_s", "heat")},
            "view": self.scale.describe(),
            "ignore": None if self.ignore is None else sha256_of(self.ignore),
        }

    def describe(self) -> list[str]:
        """Lines that say all of it."""
        threshold = "likelier than the background" if self.threshold is None else f"{self.threshold:.2f}"
        values = {"kind": self.kind, "threshold": threshold, "gate": f"{self.gate:.2f}", "view": self.scale.describe()}
        values |= {"refine": self.refine} if self.refine != "none" else {}
        values |= {"ignore": str(self.ignore)} if self.ignore else {}
        return [f"{name} {value} ({self.origins[name]})" for name, value in values.items()]

    def describe_clips(self) -> list[str]:
        """What of it concerns clips alone."""
        every = "every frame" if self.every_s is None else f"a frame every {self.every_s:g} s"
        smooth = f", maps smoothed over {self.smooth_s:g} s" if self.smooth_s else ""
        return [f"clips: {every}, maps normalised over the {self.normalise} ({self.origins['normalise']}){smooth}"]


def settle(model: Model, wishes: Wishes, *, clips: bool = True) -> Settings:
    """Wishes -> settings, defaults from the model's evaluation and config.

    Args:
        clips: whether there is one; without it what concerns clips alone is refused.

    Raises:
        ConfigError: a wish that does not fit.
    """
    check(wishes, clips)
    asked = "as asked"
    origins = {"gate": asked, "view": asked, "refine": asked, "ignore": asked, "normalise": asked}
    kind, origins["kind"] = choose_kind(model, wishes.kind)
    chain = choose_chain(model, wishes.refine)
    threshold, origins["threshold"] = choose_threshold(model, kind, wishes)
    gate = wishes.gate
    if gate is None:
        absolute = kind in PROBABILITIES
        gate = 0.0 if absolute else PRESENT_PROB
        origins["gate"] = (
            "its maps are probabilities themselves"
            if absolute
            else "default: below this probability of a class its map means nothing"
        )
    from_crops = METHODS[model.config.method.name].views == "two"
    scale = Scale(model.config.data.image_size, model.train_size, wishes.scale, wishes.view, from_crops)
    if wishes.view == "auto" and wishes.scale is None:
        origins["view"] = "default: things have the size that they had in training"
    if wishes.normalise is None:
        origins["normalise"] = "default"
    return Settings(
        kind=kind,
        threshold=threshold,
        gate=gate,
        scale=scale,
        chain=chain,
        normalise="frame" if wishes.normalise == "frame" else "clip",
        every_s=wishes.every_s,
        smooth_s=wishes.smooth_s or 0.0,
        heat=wishes.heat,
        batch_size=wishes.batch_size or model.config.cam.batch_size,
        kept=None if wishes.ignore is None else read_kept(wishes.ignore),
        ignore=wishes.ignore,
        refine=wishes.refine,
        origins=origins,
    )


def seconds_of(text: str) -> float:
    """`2s`, `0.5 s` or `2` -> seconds; raises ConfigError for anything else."""
    try:
        return float(text.strip().removesuffix("s"))
    except ValueError:
        raise ConfigError(f"--every {text}: wanted seconds, such as 1s or 0.5s") from None


def check(wishes: Wishes, clips: bool) -> None:
    for name in ("threshold", "gate"):
        value = getattr(wishes, name)
        if value is not None and not 0 <= value <= 1:
            raise ConfigError(f"--{name} {value}: wanted 0 to 1")
    for name, value in (("scale", wishes.scale), ("every", wishes.every_s), ("batch-size", wishes.batch_size)):
        if value is not None and not value > 0:
            raise ConfigError(f"--{name} {value:g}: wanted more than 0")
    if wishes.smooth_s is not None and not 0 <= wishes.smooth_s <= LONGEST_SMOOTH_S:
        raise ConfigError(f"--smooth {wishes.smooth_s:g}: wanted 0 to {LONGEST_SMOOTH_S:g} seconds")
    for name, value, known in (
        ("view", wishes.view, ("auto", "squash", "windows", "whole")),
        ("normalise", wishes.normalise or "clip", ("frame", "clip")),
    ):
        if value not in known:
            raise ConfigError(f"--{name} {value}: wanted {' or '.join(known)}")
    if wishes.view == "squash" and wishes.scale is not None:
        raise ConfigError("--scale is not of squashed frames; leave it out, or --view squash")
    of_clips = {"every": wishes.every_s, "smooth": wishes.smooth_s, "normalise": wishes.normalise}
    if given := [name for name, value in of_clips.items() if value is not None and not clips]:
        raise ConfigError(f"--{given[0]} is for clips, and SOURCE holds none; leave it out")


def choose_kind(model: Model, wanted: str | None) -> tuple[str, str]:
    """(kind of map, origin); raises ConfigError if the model has none such."""
    known = known_kinds(model)
    if wanted is not None:
        if not has_kind(model, wanted):
            raise ConfigError(f"--kind {wanted}: this model has {', '.join(known)}")
        return wanted, "as asked"
    headline = ((model.evaluation or {}).get("headline") or {}).get("source")
    for candidate, origin in (
        ("seg" if headline == "segments" else headline, "headline of its evaluation"),
        ("seg" if "seg" in known else None, "the network segments"),
        *((kind, "first of cam.kinds") for kind in model.config.cam.kinds),
    ):
        if candidate is not None and has_kind(model, candidate):
            return candidate, origin
    raise ConfigError(f"{model.place}: has none of cam.kinds {model.config.cam.kinds}; choose --kind of {known}")


def known_kinds(model: Model) -> list[str]:
    """The kinds of map that the model has, those of gradients last."""
    stride = model.method.student.stride
    with torch.no_grad():
        maps = model.method.maps_of(model.method.student(torch.zeros(1, 3, 2 * stride, 2 * stride).to(model.device)))
    return [*maps, *(("grad", "layer") if "class_map" in maps else ())]


def has_kind(model: Model, kind: str) -> bool:
    stride = model.method.student.stride
    cam = model.config.cam.model_copy(update={"kinds": (kind,), "scales": (1.0,), "window_px": None})
    try:
        read_maps(model.method, torch.zeros(1, 3, 2 * stride, 2 * stride).to(model.device), cam, None)
    except (ValueError, RuntimeError):
        return False
    return True


def choose_threshold(model: Model, kind: str, wishes: Wishes) -> tuple[float | None, str]:
    """(threshold, origin): as asked, tuned for this source in the run's evaluation, or its config's."""
    if wishes.threshold is not None:
        return wishes.threshold, "as asked"
    if kind in PROBABILITIES:
        return None, "default of a network that segments"
    source = kind if wishes.refine == "none" else f"{kind}+{wishes.refine}"
    evaluation = model.evaluation or {"sources": {}}
    tuned = (evaluation["sources"].get(source) or {}).get("tuned")
    if tuned is not None and tuned > USELESS:
        at = "" if evaluation["checkpoint"] == model.checkpoint else f" of {evaluation['checkpoint']}"
        return tuned, f"tuned for {source} in its evaluation{at}"
    config = model.config
    fixed = config.evaluate.threshold if wishes.refine == "none" else config.refine.threshold
    place = "evaluate.threshold" if wishes.refine == "none" else "refine.threshold"
    why = f"no threshold was tuned for {source}"
    if tuned is not None:
        why = f"the one tuned for {source}, {tuned:.2f}, is none"
    return fixed, f"{place} of its config: {why}"


def choose_chain(model: Model, name: str) -> tuple[Step, ...]:
    """The refiner of this name with the options of the run's config, where that has it; raises ConfigError for others
    than those that need an image and scores alone."""
    if name == "none":
        return ()
    alone = sorted(set(REFINERS) - CUED)
    if name not in alone:
        hint = "needs what `wsss cues` computes" if name in CUED else "there is no such refiner"
        raise ConfigError(f"--refine {name}: {hint}; wanted none or {' or '.join(alone)}")
    configured = [named for named in model.config.refine.chain if named.name == name]
    chosen = configured[0] if configured else Named(name=name)
    return tuple(resolve_chain(RefineConfig(chain=(chosen,))))


def read_kept(path: Path) -> np.ndarray:
    """(H, W) bool: False where a picture of the size of the frames is not black.

    Raises:
        ConfigError: it cannot be read, or leaves nothing.
    """
    with user_error_as(ConfigError):
        try:
            kept_HW = decode_image(read_bytes(path), str(path)).max(axis=2) == 0
        except DataError as error:
            raise ConfigError(f"--ignore: {error}") from error
    if not kept_HW.any():
        raise ConfigError(f"--ignore {path}: is nowhere black, so that nothing is left; paint black what is to be kept")
    return kept_HW
