"""`wsss predict`: sources and a model to a folder of predictions."""

import json
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel

from launcher.config.options import options_model
from launcher.config.whole import Config
from launcher.errors import RunError
from launcher.files import tell_refusal, write_whole
from launcher.predict.clips import predict_clip
from launcher.predict.defaults import settle
from launcher.predict.images import predict_images
from launcher.predict.model import Model, load_model
from launcher.predict.outputs import SUMMARY, Failure, Folder, ImageRows, Rows, refuse_foreign
from launcher.predict.settings import Settings, Wishes
from launcher.predict.sheet import write_sheet
from launcher.predict.sources import Inputs, find_inputs
from launcher.progress import format_duration
from launcher.run.lock import only_writer
from wsss.maps.cam import PROBABILITIES
from wsss.refine import REFINERS

OF_MAPS = {"layers", "scales", "flip", "fuse", "pad"}  # options of cam: that predicting reads


class Done(NamedTuple):
    """The result in words, and what could not be read."""

    words: str
    failures: list[Failure]


def predict(
    sources: Sequence[str],
    place: Path,
    out: Path,
    wishes: Wishes,
    *,
    device: str = "auto",
    overwrite: bool = False,
) -> Done:
    """Predict everything in `sources` that is not in OUT yet.

    It can be killed and started again; images that are new, or have changed, are added.

    Args:
        sources: see launcher.predict.sources.find_inputs.
        place: a run, or a file of `wsss export`.
        overwrite: remove earlier predictions first.

    Raises:
        RunError: no such source or model; OUT holds other things, was made with other settings or is in use.
        ConfigError: a wish that the model does not fit.
    """
    begun = time.monotonic()
    inputs = find_inputs(sources, out)
    refuse_foreign(out)
    model = load_model(place, device)
    settings = settle(model, wishes, clips=bool(inputs.clips))
    print(f"model {model.place} ({model.checkpoint}), classes {', '.join(model.class_set.classes)}, {model.device}")
    lines = [*settings.describe(), *(settings.describe_clips() if inputs.clips else [])]
    print("\n".join(lines), flush=True)
    made_of = {
        "weights": model.weights,
        "classes": model.class_set.classes,
        "below": str(inputs.below),
        **settings.identity(),
        **identify_options(model.config, settings),
    }
    with only_writer(out, wait_s=0.0, work="filled", remedy="give another --out"):
        folder = Folder(out, made_of, overwrite=overwrite)
        try:
            return fill(model, settings, inputs, folder, lines, begun)
        except OSError as error:
            raise RunError(f"{out}: cannot be written: {tell_refusal(error, out)}; then start again") from error


def identify_options(config: Config, settings: Settings) -> dict[str, Any]:
    """What of the config pixels depend on (D-187): options that may change when the run's training is started again."""
    refiner: BaseModel | None = None
    if settings.kind in PROBABILITIES and settings.refine == "crf":
        refiner = config.segment.mean_field
    elif settings.refine != "none":
        given = next((named.options for named in config.refine.chain if named.name == settings.refine), {})
        refiner = options_model(REFINERS[settings.refine]).model_validate_json(json.dumps(given))
    return {
        "refiner": None if refiner is None else refiner.model_dump(mode="json"),
        "cam": config.cam.model_dump(mode="json", include=OF_MAPS),
        "precision": config.train.precision,
    }


def fill(model: Model, settings: Settings, inputs: Inputs, folder: Folder, lines: Sequence[str], begun: float) -> Done:
    """Predict what is missing, and write the files about all of it."""
    images = ImageRows(folder.rows / "images.jsonl")
    folder.refuse_twins([*images.newest, *folder.clips(), *(one.key for one in (*inputs.images, *inputs.clips))])
    failures = predict_images(model, settings, inputs.images, folder, images)
    for clip in inputs.clips:
        failures += predict_clip(model, settings, clip, folder)
    clips = folder.clips()
    journals = [images, *clips.values()]
    summary = summarise(model, settings, journals, lines)
    summary["clips"], summary["failed"] = len(clips), len(failures)
    summary["below"], summary["seconds"] = str(inputs.below), round(time.monotonic() - begun, 1)
    folder.finish(journals, failures)
    write_sheet(folder, images, clips, failures, summary)
    write_whole(folder.path / SUMMARY, json.dumps(summary, indent=1))
    return Done(f"{summary['headline']}; {format_duration(time.monotonic() - begun)} in all", failures)


def summarise(model: Model, settings: Settings, journals: Sequence[Rows], lines: Sequence[str]) -> dict[str, Any]:
    """The contents of summary.json: model and settings, and each class over all frames."""
    classes = model.class_set.classes
    seen: list[list[float]] = [[] for _ in classes]
    frames = 0
    for row in (row for journal in journals for row in journal):
        frames += 1
        for k, of_class in enumerate(row["classes"]):
            if of_class["area_px"]:
                seen[k].append(of_class["area_percent"])
    per_class = {
        name: {"frames": len(areas), "median_area_percent": round(float(np.median(areas)), 3) if areas else None}
        for name, areas in zip(classes, seen, strict=True)
    }
    found = [
        f"{name} in {facts['frames']}, median area {facts['median_area_percent']:.1f} %"
        for name, facts in per_class.items()
        if facts["frames"]
    ]
    return {
        "headline": f"{frames} frame{'' if frames == 1 else 's'}: {'; '.join(found) or 'no class in any'}",
        "frames": frames,
        "per_class": per_class,
        "model": str(model.place),
        "checkpoint": model.checkpoint,
        "weights": model.weights,
        "classes": classes,
        "settings": settings.identity(),
        "settings_in_words": list(lines),
        "version": version_of_wsss(),
    }


def version_of_wsss() -> str | None:
    try:
        return version("wsss")
    except PackageNotFoundError:  # not installed, run from the source tree
        return None
