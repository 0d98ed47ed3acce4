"""`accelerate launch -m launcher.train CONFIG [section.key=value ...]`: config -> objects -> Trainer.fit."""

import getpass
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from launcher import checkpoint, jobs, zero
from launcher.build import ABOUT, CONFIG, build_method, load_about, run_folder
from launcher.config import Config
from launcher.config_file import flatten, load_config, to_yaml
from launcher.errors import ConfigError, RunError, reported_as, told
from launcher.infer import cams_of
from launcher.skips import Skips
from launcher.stopping import STOPPED, Stopped, only_writer, stop_on_sigterm
from launcher.topology import make_accelerator, process_count
from launcher.tracking import NoTracker, Tracker
from launcher.trainer import Batch, Trainer
from launcher.validate import validator
from shards.augment import Augment
from shards.masks import MaskFolder
from shards.remote import name_of
from shards.stream import MaskOf, ShardFolder, Slice, Transform, train_loader
from shards.views import TwoViews
from wsss.methods import METHODS
from wsss.methods.base import Method
from wsss.optim import lr_at, parameter_groups

PACKAGES = ("torch", "timm", "accelerate", "deepspeed", "webdataset", "mlflow", "pydensecrf2", "segment-anything")
# Settings that do not change the trained weights, so that a run may go on with others.
FREE_TO_CHANGE = (
    *(
        "launch.",
        "tracking.",
        "cam.",
        "refine.",
        "segment.",
        "evaluate.",
        "data.val",
        "data.tune",
        "data.workers",
        "data.max_skipped",
    ),
    *("train.log_every", "train.eval_every", "train.save_every", "train.keep"),
)


def train(config: Config) -> Method:
    """Train a run to its end, from its last checkpoint if it has one. Called by every process.

    Returns:
        The trained method, not wrapped.

    Raises:
        ConfigError, DataError, RunError: what the user can mend, nearly all of it before the first step.
        Stopped: SIGTERM came; all ranks have stopped after the same step, and its checkpoint is written.
    """
    run = run_folder(config)
    train_shards, val_shards = check_inputs(config)
    accelerator = make_accelerator(config, processes=config.launch.processes)
    main = accelerator.is_main_process
    with only_writer(run) if main else nullcontext(), stop_on_sigterm() as asked_to_stop:
        found = checkpoint.newest_good(run, accelerator)
        method, optimizer = build_trained(config, train_shards, accelerator)
        whole = zero.whole_of(accelerator, method)
        about = describe(config, train_shards, accelerator.num_processes)
        tracker = open_tracker(config, run, about, found) if main else NoTracker()
        trainer = make_trainer(
            config,
            train_shards,
            accelerator,
            method,
            optimizer,
            resume_from=found,
            evaluate=validator(config, whole, val_shards, accelerator, tracker) if val_shards else None,
            asked_to_stop=asked_to_stop,
            tracker=tracker,
            whole=whole,
        )
        status = "FAILED"
        try:
            status = "FINISHED" if trainer.fit() else "KILLED"
        finally:
            tracker.close(status)
    if status == "KILLED":
        raise Stopped(f"{run}: told to stop, did so after step {trainer.step}; start it again to go on")
    return whole


def build_trained(config: Config, shards: ShardFolder, accelerator: Accelerator) -> tuple[Method, torch.optim.AdamW]:
    """The method with its initial weights, equal on all ranks, and its optimizer."""
    torch.manual_seed(config.train.seed)
    method = build_method(config, shards.index.as_class_set())
    if config.train.sync_norm and accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        method = torch.nn.SyncBatchNorm.convert_sync_batchnorm(method)
    groups = parameter_groups(
        method,
        config.train.weight_decay,
        decay_all=config.train.decay_all,
        new_lr_factor=config.train.new_lr_factor,
    )
    return method, torch.optim.AdamW(groups, lr=config.train.lr, fused=True)


def make_trainer(
    config: Config,
    shards: ShardFolder,
    accelerator: Accelerator,
    method: Method,
    optimizer: torch.optim.Optimizer,
    *,
    resume_from: Path | None,
    evaluate: Callable[[int], Mapping[str, float]] | None,
    asked_to_stop: Callable[[], bool],
    tracker: NoTracker,
    whole: Method | None = None,
) -> Trainer:
    """The trainer of a run, for `wsss train` and for those who repeat a step of it."""
    return Trainer(
        config=config.train,
        run=run_folder(config),
        resume_from=resume_from,
        accelerator=accelerator,
        method=method,
        optimizer=optimizer,
        lr_at=partial(
            lr_at,
            lr=config.train.lr,
            steps=max(config.train.steps, 1),
            warmup_steps=config.train.warmup_steps,
            power=config.train.power,
        ),
        batches_from=partial(batches_from, config, shards, accelerator.process_index, accelerator.num_processes),
        evaluate=evaluate,
        asked_to_stop=asked_to_stop,
        tracker=tracker,
        global_batch_size=config.data.global_batch_size,
        skips=Skips(run_folder(config), config.data.max_skipped, accelerator),
        whole=whole,
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
        with reported_as(ConfigError):
            cams_of(method, small, config.cam.model_copy(update={"window_px": None}))


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
        load_about(config.teacher)
        checkpoint.latest(config.teacher)
    return train_shards, val_shards


def training_shards(config: Config) -> ShardFolder:
    """The folder of data.train, which must hold masks if, and only if, the method learns from masks that lie there.

    Raises:
        DataError: it holds masks that the method must not see, or none where it needs them.
        RunError: data.masks was made for other images.
    """
    needs_masks = METHODS[config.method.name].supervision == "mask" and config.data.masks is None
    shards = ShardFolder(config.data.train, "pixel" if needs_masks else "label")
    if config.data.masks is not None:
        made_of = jobs.made_of(config.data.masks) or {}
        if made_of.get("fingerprint") != shards.index.fingerprint:
            raise RunError(
                f"data.masks: {config.data.masks} was made for images of fingerprint {made_of.get('fingerprint')}, "
                f"data.train has {shards.index.fingerprint}; infer and refine the training split of {config.data.train}"
            )
    return shards


def check_same_run(config: Config, run: Path, fingerprint: str) -> None:
    """Raise RunError if the run was begun on other data, or with other settings that change its weights."""
    config_before, about = load_about(run)
    before, now = flatten(config_before.model_dump(mode="json")), flatten(config.model_dump(mode="json"))
    different = [
        f"{key}: {before.get(key)} -> {now.get(key)}"
        for key in {**before, **now}
        if before.get(key) != now.get(key) and not key.startswith(FREE_TO_CHANGE)
    ]
    if about["dataset_fingerprint"] != fingerprint:
        different.append(f"dataset fingerprint: {about['dataset_fingerprint']} -> {fingerprint}")
    if different:
        raise RunError(
            f"{run} exists and was begun with other settings ({'; '.join(different)}): give the new run another name, "
            "or remove the folder"
        )


def batches_from(config: Config, shards: ShardFolder, rank: int, ranks: int, step: int) -> Iterator[Batch]:
    """This rank's endless micro-batches from a step on, with the few images that have masks where there are any."""
    batches = iter(loader_of(config, shards, rank, ranks, step))
    if config.data.pixel is None:
        return batches
    pixel = iter(pixel_loader_of(config, rank, ranks, step))
    return ({**batch, "pixel": few} for batch, few in zip(batches, pixel, strict=True))


def loader_of(config: Config, shards: ShardFolder, rank: int, ranks: int, step: int) -> DataLoader:
    mask_of: MaskOf | None = None
    if METHODS[config.method.name].supervision == "mask":
        mask_of = MaskFolder(config.data.masks, shards) if config.data.masks else shards.mask
    part = Slice(
        rank=rank, ranks=ranks, global_batch_size=config.data.global_batch_size, accumulate=config.train.accumulate
    )
    return train_loader(
        shards,
        augment_of(config),
        seed=config.train.seed,
        part=part,
        workers=config.data.workers,
        first_step=step,
        mask_of=mask_of,
        may_lack_classes=config.data.may_lack_classes,
        max_skipped=config.data.max_skipped,
    )


def pixel_loader_of(config: Config, rank: int, ranks: int, step: int) -> DataLoader:
    """The few images with masks, in the training process itself: they are too few for workers."""
    assert config.data.pixel is not None
    shards = ShardFolder(config.data.pixel, "pixel")
    size, accumulate = config.data.pixel_batch_size, config.train.accumulate
    part = Slice(rank=rank, ranks=ranks, global_batch_size=size, accumulate=accumulate)
    return train_loader(
        shards,
        augment_of(config),
        seed=config.train.seed,
        part=part,
        workers=0,
        first_step=step,
        mask_of=shards.mask,
    )


def augment_of(config: Config) -> Transform:
    if METHODS[config.method.name].views == "two":
        return TwoViews(size=config.data.image_size, scale=config.data.scale, flip=config.data.flip)
    return Augment(size=config.data.image_size, min_crop=config.data.min_crop, flip=config.data.flip)


def describe(config: Config, shards: ShardFolder, processes: int) -> dict[str, Any]:
    """What run.json holds: where this run came from."""
    return {
        "class_set": shards.index.class_set,
        "classes": shards.index.classes,
        "dataset_fingerprint": shards.index.fingerprint,
        "processes": processes,
        "git_commit": git_commit(),
        "command": " ".join(sys.argv),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES if name in installed()},
        "machine": f"{platform.machine()}, {torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'}",
    }


def installed() -> set[str]:
    from importlib.metadata import distributions

    return {d.metadata["Name"] for d in distributions()}


def git_commit() -> str:
    """Commit of the code that runs, with '+changes' if files differ from it; 'unknown' outside a checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=here, capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def open_tracker(config: Config, run: Path, about: dict[str, Any], found: Path | None) -> Tracker:
    """Write the run's config.yaml and run.json, and begin or go on with its MLflow run."""
    run.mkdir(parents=True, exist_ok=True)
    path = run / ABOUT
    before = json.loads(path.read_text()) if path.is_file() else {}
    (run / CONFIG).write_text(to_yaml(config))
    tracker = Tracker(
        run,
        experiment=config.tracking.experiment,
        params=flatten(config.model_dump(mode="json")),
        tags={
            "mlflow.source.git.commit": about["git_commit"],
            "mlflow.source.name": about["command"],
            "mlflow.user": getpass.getuser(),
            "dataset_fingerprint": about["dataset_fingerprint"],
        },
        datasets={"train": (name_of(config.data.train), config.data.train, about["dataset_fingerprint"])},
        resumed_at=checkpoint.step_of(found) if found else 0,
    )
    path.write_text(json.dumps({**about, "started": before.get("started", about["started"])}, indent=1))
    tracker.artifact(run / CONFIG)
    return tracker


def main(arguments: Sequence[str]) -> None:
    try:
        train(load_config(Path(arguments[0]), arguments[1:]))
    except Stopped as stopped:
        if int(os.environ.get("RANK", 0)) == 0:
            print(stopped, flush=True)
        # An elastic launcher would take any other code for a failure and start again.
        sys.exit(0 if "TORCHELASTIC_RUN_ID" in os.environ else STOPPED)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


if __name__ == "__main__":
    with told():
        main(sys.argv[1:])
