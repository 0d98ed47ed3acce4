"""A run's folder: its config and what it was made of."""

import json
from collections.abc import Sequence
from pathlib import Path

from launcher.config.file import load_config
from launcher.config.sections import Config
from launcher.errors import ConfigError, RunError
from launcher.files import RUNS
from shards.remote import Place

CONFIG = "config.yaml"


ABOUT = "run.json"


# Reading a trained run needs neither the machines nor the ZeRO stage that trained it.
HERE = ("launch.zero=0", "launch.machines=1", "launch.machine_rank=0", "launch.main_address=null", "launch.port=0")


def run_folder(config: Config) -> Path:
    return RUNS / config.name


def load_about(run: Path, overrides: Sequence[str] = ()) -> tuple[Config, dict]:
    """Config and run.json of a run's folder; the config is launched on this machine, unless overridden."""
    if not (run / CONFIG).is_file() or not (run / ABOUT).is_file():
        below = sorted(str(path.parent) for path in run.glob(f"**/{CONFIG}"))[:5] if run.is_dir() else []
        hint = f"below it are {', '.join(below)}" if below else "train one with `wsss train CONFIG`"
        raise RunError(f"{run}: no run here ({CONFIG} or {ABOUT} is missing); {hint}")
    several = load_config(run / CONFIG).launch.machines > 1  # then `processes` counts those of all of them
    here = [*HERE, "launch.processes=null"] if several else HERE
    return load_config(run / CONFIG, [*here, *overrides]), json.loads((run / ABOUT).read_text())


def split_folders(config: Config, only: str | None = None) -> dict[str, Place]:
    """{split: folder of shards}: of the split that is named, or of those of val and tune that the config has.

    Raises:
        ConfigError: the config has no such split.
    """
    folders = {"val": config.data.val, "tune": config.data.tune, "train": config.data.train}
    wanted = [only] if only else [name for name in ("val", "tune") if folders[name]]
    found = {name: folder for name in wanted if (folder := folders.get(name)) is not None}
    if missing := [name for name in wanted if name not in found]:
        raise ConfigError(f"--split {missing[0]}: this run has {', '.join(n for n, f in folders.items() if f)}")
    return found
