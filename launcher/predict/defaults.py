"""Wishes -> settings: values that nobody gave come from the model's evaluation and config, each with its origin."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from launcher.config.options import Named
from launcher.config.sections import RefineConfig
from launcher.errors import ConfigError, user_error_as
from launcher.evaluation.formats import NOTHING_FOUND, finds_nothing, rests_on_few
from launcher.evaluation.thresholds import PRESENT_PROB
from launcher.jobs.refine import resolve_chain
from launcher.predict.model import Model
from launcher.predict.settings import Settings, Wishes
from launcher.predict.views import Scale, read_maps
from shards.image_bytes import decode_image
from shards.schema import DataError
from shards.sources.text import read_bytes
from wsss.maps.cam import ATTENTION, BESIDE, PROBABILITIES, has_attention
from wsss.maps.gradients import GRADIENT_KINDS
from wsss.maps.scales import LARGEST
from wsss.methods import METHODS
from wsss.refine import REFINERS, takes_cue
from wsss.refine.chain import Step

LONGEST_SMOOTH_S = 60.0  # the maps of this time are in memory


def settle(model: Model, wishes: Wishes, *, clips: bool = True) -> Settings:
    """Wishes -> settings, with defaults from the model's evaluation and config.

    Args:
        clips: whether there are clips; without them, options that only concern clips are refused.

    Raises:
        ConfigError: a wish that does not fit.
    """
    check(wishes, clips)
    asked = "as asked"
    origins = {"view": asked, "refine": asked, "ignore": asked, "normalise": asked}
    kind, origins["kind"] = choose_kind(model, wishes.kind)
    chain = choose_chain(model, wishes.refine)
    threshold, origins["threshold"] = choose_threshold(model, kind, wishes)
    gate, origins["gate"] = choose_gate(model, kind, wishes)
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


def check(wishes: Wishes, clips: bool) -> None:
    for name in ("threshold", "gate"):
        value = getattr(wishes, name)
        if value is not None and not 0 <= value <= 1:
            raise ConfigError(f"--{name} {value}: wanted 0 to 1")
    for name, value in (("scale", wishes.scale), ("every", wishes.every_s), ("batch-size", wishes.batch_size)):
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"--{name} {value:g}: wanted more than 0")
    if wishes.scale is not None and wishes.scale > LARGEST:
        raise ConfigError(f"--scale {wishes.scale:g}: wanted up to {LARGEST:g}")
    if wishes.smooth_s is not None and not 0 <= wishes.smooth_s <= LONGEST_SMOOTH_S:
        raise ConfigError(f"--smooth {wishes.smooth_s:g}: wanted 0 to {LONGEST_SMOOTH_S:g} seconds")
    for name, value, known in (
        ("view", wishes.view, ("auto", "squash", "windows", "whole")),
        ("normalise", wishes.normalise or "clip", ("frame", "clip")),
    ):
        if value not in known:
            raise ConfigError(f"--{name} {value}: wanted {' or '.join(known)}")
    if wishes.view == "squash" and wishes.scale is not None:
        raise ConfigError("--scale has no effect on squashed frames; leave it out, or --view squash")
    of_clips = {"every": wishes.every_s, "smooth": wishes.smooth_s, "normalise": wishes.normalise}
    if given := [name for name, value in of_clips.items() if value is not None and not clips]:
        raise ConfigError(f"--{given[0]} is for clips, and SOURCE holds none; leave it out")


def choose_kind(model: Model, wanted: str | None) -> tuple[str, str]:
    """(kind of map, origin); raises ConfigError if the model does not have it."""
    known = known_kinds(model)
    if wanted is not None:
        if not has_kind(model, wanted):
            why = "" if model.has_gradients else f"; {', '.join(BESIDE)} need its run"
            raise ConfigError(f"--kind {wanted}: this model has {', '.join(known)}{why}")
        return wanted, "as asked"
    if model.chosen_kind is not None:
        return model.chosen_kind, "chosen when it was exported"
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
    """The kinds of map that the model has; those that are not outputs of the network come last."""
    stride = model.method.student.stride
    with torch.no_grad():
        maps = model.method.maps_of(model.method.student(torch.zeros(1, 3, 2 * stride, 2 * stride).to(model.device)))
    by_gradient = GRADIENT_KINDS if model.has_gradients and "class_map" in maps else ()
    return [*maps, *([ATTENTION] if has_attention(model.method.student) else []), *by_gradient]


def has_kind(model: Model, kind: str) -> bool:
    stride = model.method.student.stride
    cam = model.config.cam.model_copy(update={"kinds": (kind,), "scales": (1.0,), "window_px": None})
    try:
        read_maps(model.method, torch.zeros(1, 3, 2 * stride, 2 * stride).to(model.device), cam, None)
    except (ValueError, RuntimeError):
        return False
    return True


def choose_threshold(model: Model, kind: str, wishes: Wishes) -> tuple[float | None, str]:
    """(threshold, origin): as asked, as tuned for this source in the run's evaluation, or as in its config."""
    if wishes.threshold is not None:
        return wishes.threshold, "as asked"
    if kind in PROBABILITIES:
        return None, "default of a network that segments"
    source = kind if wishes.refine == "none" else f"{kind}+{wishes.refine}"
    evaluation = model.evaluation or {"sources": {}}
    tuned = (evaluation["sources"].get(source) or {}).get("tuned")
    few = describe_few(evaluation)
    if tuned is not None and not finds_nothing(tuned) and not few:
        at = "" if evaluation["checkpoint"] == model.checkpoint else f" of {evaluation['checkpoint']}"
        return tuned, f"tuned for {source} in its evaluation{at}"
    config = model.config
    fixed = config.evaluate.threshold if wishes.refine == "none" else config.refine.threshold
    place = "evaluate.threshold" if wishes.refine == "none" else "refine.threshold"
    why = f"no threshold was tuned for {source}"
    if tuned is not None:
        why = f"the one tuned for {source}, {tuned:.2f}, {NOTHING_FOUND if finds_nothing(tuned) else few}"
    return fixed, f"{place} of its config: {why}"


def choose_gate(model: Model, kind: str, wishes: Wishes) -> tuple[float, str]:
    """(gate, origin): as asked, as tuned by image labels in the run's evaluation, or PRESENT_PROB."""
    if wishes.gate is not None:
        return wishes.gate, "as asked"
    if kind in PROBABILITIES:
        return 0.0, "its maps are probabilities themselves"
    evaluation = model.evaluation or {}
    tuned, few = evaluation.get("gate"), describe_few(evaluation)
    if tuned is not None and not few:
        return tuned, "tuned by image labels in its evaluation"
    instead = "" if tuned is None else f"; the one tuned by image labels, {tuned:.2f}, {few}"
    return PRESENT_PROB, f"default: below this probability of a class its map means nothing{instead}"


def describe_few(evaluation: Mapping[str, Any]) -> str:
    """On how many images something was tuned, if they are too few to trust it; "" if they are enough."""
    tune = evaluation.get("tune")
    return f"rests on {tune['images_shown']} images, which is chance" if tune and rests_on_few(tune) else ""


def choose_chain(model: Model, name: str) -> tuple[Step, ...]:
    """The refiner of this name, with its options in the run's config, if any; raises ConfigError if it needs more than
    an image and scores."""
    if name == "none":
        return ()
    with user_error_as(ConfigError):
        if name not in REFINERS or takes_cue(name):
            hint = "needs what `wsss cues` computes" if name in REFINERS else "there is no such refiner"
            alone = sorted(ours for ours in REFINERS.ours if not takes_cue(ours))
            raise ConfigError(f"--refine {name}: {hint}; wanted none or {' or '.join(alone)}")
    configured = [named for named in model.config.refine.chain if named.name == name]
    chosen = configured[0] if configured else Named(name=name)
    return tuple(resolve_chain(RefineConfig(chain=(chosen,))))


def read_kept(path: Path) -> np.ndarray:
    """(H, W) bool: True where a picture of the size of the frames is black.

    Raises:
        ConfigError: it cannot be read, or leaves nothing.
    """
    with user_error_as(ConfigError):
        try:
            kept_HW = decode_image(read_bytes(path), str(path)).max(axis=2) == 0
        except DataError as error:
            raise ConfigError(f"--ignore: {error}") from error
    if not kept_HW.any():
        raise ConfigError(f"--ignore {path}: has no black area, so nothing is left; paint the area that counts black")
    return kept_HW
