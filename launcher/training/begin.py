"""What a run records about itself: its config.yaml and run.json, and what trackers show besides metrics."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.config.file import flatten, to_yaml
from launcher.config.whole import Config
from launcher.errors import ConfigError, RunError
from launcher.files import Damaged, read_json, set_aside, typed, write_whole
from launcher.predict.export import export
from launcher.processes.surroundings import user_name
from launcher.run import steps
from launcher.run.failure import continue_command
from launcher.run.folder import ABOUT, CONFIG, run_folder
from launcher.tracking.protocol import Tracker
from launcher.tracking.tracker import open_tracker
from launcher.training.go_on import FORKED
from launcher.training.inputs import Inputs
from shards.remote import name_of
from shards.schema import DataError

STUDENT = "student.safetensors"  # in the run's folder, for tracking.model


def begin_run(
    inputs: Inputs, about: dict[str, Any], found: Path | None, said: Sequence[str], headlines: Mapping[str, str]
) -> Tracker:
    """Write the run's config.yaml and run.json, and start or continue its tracking.

    Args:
        about: where the run came from, see collect_provenance.
        found: the checkpoint from which it continues.
        said: what the user typed: the config's file and the overrides.
        headlines: see validate.headline_names.
    """
    config = inputs.config
    run = run_folder(config)
    path = run / ABOUT
    try:
        before = read_json(path) if path.is_file() else {}
    except Damaged as error:
        before = {}
        set_aside(path, error)
    write_whole(run / CONFIG, to_yaml(config))
    splits = {"train": inputs.train, "val": inputs.val, "tune": inputs.tune}
    tracker = open_tracker(
        run,
        config.tracking,
        params=flatten(config.model_dump(mode="json")),
        tags={
            "mlflow.source.git.commit": about["git_commit"],
            "mlflow.source.name": str(said[0]) if said else about["command"],
            "mlflow.source.type": "LOCAL",
            "mlflow.user": user_name(),
            "dataset_fingerprint": about["dataset_fingerprint"],
            "wsss.overrides": shlex.join(said[1:]),
            **place_in_study(config),
        },
        datasets={
            use: (name_of(shards.folder), shards.folder, shards.index.fingerprint)
            for use, shards in splits.items()
            if shards is not None
        },
        headlines=headlines,
        about=describe(config, run, about),
        resumed_at=steps.step_number(found) if found else 0,
        evaluates_again=found is None or not steps.read_figures(found),
    )
    past = {name: before[name] for name in FORKED if name in before}
    write_whole(path, json.dumps({**about, "started": before.get("started", about["started"]), **past}, indent=1))
    tracker.artifact(run / CONFIG)
    return tracker


def place_in_study(config: Config) -> dict[str, str]:
    """Tags for grouping runs, from names of the form STUDY/ROW_seedN, as studies use them."""
    study, _, name = config.name.rpartition("/")
    return {"wsss.study": study, "wsss.row": re.sub(r"_seed\d+$", "", name), "wsss.seed": str(config.train.seed)}


def describe(config: Config, run: Path, about: dict[str, Any]) -> dict[str, Any]:
    """A description of a run, see RunTracker.tell."""
    data, train = config.data, config.train
    network = config.model.options.get("timm_name", "")
    val = f", validated on {data.val}" if data.val else ""
    return {
        "what": f"{config.method.name} with {config.model.name} {network}".rstrip()
        + f": {train.steps:,} steps of {data.global_batch_size} images of {data.image_size} px, seed {train.seed}",
        "data": f"{data.train} ({about['dataset_fingerprint']}){val}",
        "folder": f"{run.absolute()}",
        "again": continue_command(run),
        "commit": about["git_commit"],
    }


def offer_model(config: Config, tracker: Tracker) -> None:
    """Export the student of a finished run (of its best checkpoint, if train.keep_best is set) and register it as a
    model. An error here does not fail a run that is done."""
    run, best = run_folder(config), config.train.keep_best
    assert config.tracking.model is not None
    try:
        checkpoint = steps.find_best(steps.step_folders(run), best) if best else None
        export(run, run / STUDENT, checkpoint=checkpoint)
    except (RunError, ConfigError, DataError) as error:
        later = f"{typed('export', run)} --out FILE"
        print(f"tracking.model: the student was not exported ({error}); to do it later: {later}", flush=True)
        return
    tracker.model(run / STUDENT, config.tracking.model, "best" if checkpoint else "newest")
