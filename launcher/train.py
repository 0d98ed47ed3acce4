"""`accelerate launch -m launcher.train CONFIG [section.key=value ...]`: config -> objects -> Trainer.fit."""

import getpass
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from launcher import checkpoint, zero
from launcher.build import ABOUT, CONFIG, build_method, run_folder
from launcher.config import Config
from launcher.config_file import flatten, load_config, to_yaml
from launcher.errors import ConfigError, reported_as, told
from launcher.infer import cams_of
from launcher.inputs import batches_from, check_inputs, learns_from, loader_of, pixel_loader_of
from launcher.journal import write_whole
from launcher.provenance import describe
from launcher.skips import Skips
from launcher.stopping import Stopped, code_of_stop, group_left, only_writer, stop_on_sigterm
from launcher.topology import make_accelerator, process_count
from launcher.tracking import NoTracker, Tracker
from launcher.trainer import Trainer
from launcher.validate import validator
from shards.remote import name_of
from shards.stream import ShardFolder
from wsss.methods.base import Method
from wsss.optim import lr_at, parameter_groups


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
        about = describe(train_shards, learns_from(config), accelerator.num_processes)
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


def open_tracker(config: Config, run: Path, about: dict[str, Any], found: Path | None) -> Tracker:
    """Write the run's config.yaml and run.json, and begin or go on with its MLflow run."""
    run.mkdir(parents=True, exist_ok=True)
    path = run / ABOUT
    before = json.loads(path.read_text()) if path.is_file() else {}
    write_whole(run / CONFIG, to_yaml(config))
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
        evaluates_again=found is not None and not (found / checkpoint.FIGURES).is_file(),
    )
    write_whole(path, json.dumps({**about, "started": before.get("started", about["started"])}, indent=1))
    tracker.artifact(run / CONFIG)
    return tracker


def main(arguments: Sequence[str]) -> None:
    try:
        with group_left():
            train(load_config(Path(arguments[0]), arguments[1:]))
    except Stopped as stopped:
        if int(os.environ.get("RANK", 0)) == 0:
            print(stopped, flush=True)
        sys.exit(code_of_stop())


if __name__ == "__main__":
    with told():
        main(sys.argv[1:])
