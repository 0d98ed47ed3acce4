"""A run's folder: its config, what it was made of, and its checkpoints."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher.config.file import check_content, read_content
from launcher.config.whole import Config
from launcher.errors import ConfigError, RunError
from launcher.files import RUNS, Damaged, read_json, require_here, root_of
from launcher.run import steps
from shards.remote import Place
from shards.schema import ClassSet

CONFIG = "config.yaml"
ABOUT = "run.json"
EVALUATION = "evaluation.json"
# Reading a trained run needs neither the machines nor the ZeRO stage that trained it.
HERE = (
    *("launch.zero=0", "launch.processes=null"),  # as many as there are GPUs here
    *("launch.machines=1", "launch.machine_rank=0", "launch.main_address=null", "launch.port=0"),
)


def run_folder(config: Config) -> Path:
    """Raises DataError if WSSS_RUNS names a URL."""
    return require_here(RUNS) / config.name


class Run:
    """The contents of runs/NAME, read once.

    Attributes:
        folder: of the run.
        config: what it was trained with, adapted to this machine: reading a run needs neither the machines nor the ZeRO
            stage of its training. `overrides` (section.key=value) change options for what is done with the run
            afterwards.
        about: run.json: class set, data and teacher by identity, commit, versions, processes, time of the start.

    Raises:
        RunError: no run there.
        ConfigError: overrides that do not fit.
    """

    def __init__(self, folder: Path, overrides: Sequence[str] = ()) -> None:
        if not is_run(folder):
            below = ", ".join(map(str, find_runs(folder)[:5]))
            hint = f"below it are {below}" if below else "train one with `wsss train CONFIG`"
            if is_run(RUNS / folder):
                hint = f"did you mean {RUNS / folder}?"
            raise RunError(f"{folder}: no run here ({CONFIG} or {ABOUT} is missing); {hint}")
        try:
            content = read_content(folder / CONFIG)
            self.about: dict[str, Any] = read_json(folder / ABOUT)
        except (ConfigError, Damaged) as error:
            raise Damaged(f"{error}; start its training again with its config, which rewrites the file") from error
        self.folder = folder
        self.config: Config = check_content(content, folder / CONFIG, [*HERE, *overrides])
        self._checkpoint: Path | None = None

    @property
    def teacher(self) -> Path | None:
        """The run that it learned from: at the path in its config, or else under that name in the folder of runs that
        contains this run, so that a run can be read from any working folder. None if it had no teacher."""
        named = self.config.teacher
        if named is None or named.is_absolute() or is_run(named):
            return named
        beside = root_of(self.folder).joinpath(*named.parts[1:])
        return beside if is_run(beside) else named

    @property
    def class_set(self) -> ClassSet:
        return ClassSet(name=self.about["class_set"], classes=tuple(self.about["classes"]))

    def checkpoint(self) -> Path:
        """The newest complete checkpoint; for a run that is being trained, the newest one at the first call.

        Raises:
            RunError: there is none.
        """
        self._checkpoint = self._checkpoint or steps.newest_complete(self.folder)
        return self._checkpoint

    def at(self, checkpoint: str) -> "Run":
        """The same run with this checkpoint in place of the newest: the one that another process started with."""
        self._checkpoint = self.folder / checkpoint
        return self

    def __str__(self) -> str:
        return str(self.folder)


def is_run(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and (folder / ABOUT).is_file()


def find_runs(folder: Path) -> list[Path]:
    """The run in a folder and those below it, by name. A config.yaml alone, as MLflow keeps copies of, is none."""
    found = [folder / CONFIG, *folder.glob(f"**/{CONFIG}")]
    return sorted({path.parent for path in found if is_run(path.parent)})


def split_folders(config: Config, only: str | None = None) -> dict[str, Place]:
    """{split: folder of shards} for the named split, or for those of val and tune that the config has.

    Raises:
        ConfigError: the config has no such split, or neither val nor tune where none is named.
    """
    folders = {"val": config.data.val, "tune": config.data.tune, "train": config.data.train}
    wanted = [only] if only else [name for name in ("val", "tune") if folders[name]]
    found = {name: folder for name in wanted if (folder := folders.get(name)) is not None}
    has = ", ".join(name for name, folder in folders.items() if folder)
    if missing := [name for name in wanted if name not in found]:
        raise ConfigError(f"--split {missing[0]}: this run has only {has}")
    if not found:
        raise ConfigError(
            f"this run has neither data.val nor data.tune, only {has}: name it with --split, or give another folder, "
            "data.val=FOLDER"
        )
    return found
