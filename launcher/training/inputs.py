"""What a run reads: checked before anything trains, and as batches."""

import hashlib
import json
from pathlib import Path

import torch

from launcher.config.file import flatten
from launcher.config.sections import Config
from launcher.errors import ConfigError, RunError, user_error_as
from launcher.jobs import output as jobs
from launcher.jobs.infer import cams_of
from launcher.processes.accelerator import process_count
from launcher.run import steps
from launcher.run.build import build_method
from launcher.run.folder import ABOUT, Run, run_folder
from launcher.training.loaders import loader_of, pixel_loader_of, training_shards
from shards.folder import ShardFolder

# Settings that do not change the trained weights, so that a run may go on with others.
FREE_TO_CHANGE = (
    *("launch.", "tracking.", "cam.", "refine.", "segment.", "evaluate."),
    *("data.val", "data.tune", "data.workers", "data.max_skipped"),
    *("train.log_every", "train.eval_every", "train.save_every", "train.keep"),
)


def check_inputs(config: Config) -> tuple[ShardFolder, ShardFolder | None]:
    """Open everything that a run reads, so that what is wrong is said before any process starts to train."""
    run = run_folder(config)
    train_shards = training_shards(config)
    if (run / ABOUT).is_file():
        check_same_run(config, run, train_shards.index.fingerprint)
    val_shards = ShardFolder(config.data.val, "pixel") if config.data.val else None
    train_groups = train_shards.index.groups
    if config.data.pixel is not None:
        train_groups = train_groups | ShardFolder(config.data.pixel, "pixel").index.groups
    for name in ("val", "tune", "pixel"):
        folder = getattr(config.data, name)
        if folder is None:
            continue
        other = ShardFolder(folder, "pixel").index
        if other.classes != train_shards.index.classes:
            raise RunError(
                f"data.{name}: {folder} has classes {other.classes}, data.train {train_shards.index.classes}"
            )
        shared = sorted(other.groups & train_groups)
        if shared and name != "pixel":
            raise RunError(f"data.{name}: {folder} shares {len(shared)} groups with training, first '{shared[0]}'")
    if config.teacher is not None:
        Run(config.teacher).checkpoint()
    return train_shards, val_shards


def learns_from(config: Config) -> dict[str, str]:
    """{what: its identity} of all beside data.train that a run learns from. Paths alone would not tell: a teacher may
    be trained on, masks may be made anew."""
    found = {}
    if config.teacher is not None:
        folder = steps.newest_complete(config.teacher)
        digests = steps.read_state(folder).get("sha256", {})  # none of before there were hashes
        found["teacher"] = f"{folder.name}, sha256 {digests.get(steps.MODEL, 'unknown')}"
    if config.data.masks is not None:
        made_of = json.dumps(jobs.read_made_of(config.data.masks), sort_keys=True)
        found["data.masks"] = f"made of {hashlib.sha256(made_of.encode()).hexdigest()}"
    if config.data.pixel is not None:
        found["data.pixel"] = f"fingerprint {ShardFolder(config.data.pixel, 'pixel').index.fingerprint}"
    return found


def check_same_run(config: Config, run: Path, fingerprint: str) -> None:
    """Raise RunError if the run was begun on other data, or with other settings that change its weights."""
    of = Run(run)
    about = of.about
    before, now = flatten(of.config.model_dump(mode="json")), flatten(config.model_dump(mode="json"))
    different = [
        f"{key}: {before.get(key)} -> {now.get(key)}"
        for key in {**before, **now}
        if before.get(key) != now.get(key) and not key.startswith(FREE_TO_CHANGE)
    ]
    then, here = about.get("learns_from", {}), learns_from(config)
    different += [f"{what}: {then[what]} -> {here[what]}" for what in then if here.get(what, then[what]) != then[what]]
    if about["dataset_fingerprint"] != fingerprint:
        different.append(f"dataset fingerprint: {about['dataset_fingerprint']} -> {fingerprint}")
    if different:
        raise RunError(
            f"{run} exists and was begun with other settings ({'; '.join(different)}): give the new run another name, "
            "or remove the folder"
        )


def preflight(config: Config) -> None:
    """Find in one process what would otherwise stop all of them, some of it after hours: wrong data, a missing teacher,
    weights that do not fit, a kind of CAM that the method does not have. Weights that must be downloaded are, before
    several processes want them at once."""
    shards, _ = check_inputs(config)
    loader_of(config, shards, 0, process_count(config), 0)
    if config.data.pixel is not None:
        pixel_loader_of(config, 0, process_count(config), 0)
    method = build_method(config, shards.index.as_class_set())
    if method.gives_maps:
        small = torch.zeros(1, 3, 2 * method.student.stride, 2 * method.student.stride)
        with user_error_as(ConfigError):
            cams_of(method, small, config.cam.model_copy(update={"window_px": None}))
