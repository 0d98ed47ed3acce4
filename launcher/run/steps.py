"""The checkpoints in a run's folder: which exist, and which are complete, damaged, newest or best."""

import json
import math
import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.errors import RunError
from launcher.files import Damaged, read_json, set_aside, write_whole
from launcher.processes.group import from_first_rank
from launcher.progress import say
from shards.schema import DataError
from shards.tars import sha256_of

if TYPE_CHECKING:
    from accelerate import Accelerator


MODEL, OPTIMIZER, STATE, FIGURES = "model.safetensors", "optimizer.pt", "state.json", "figures.json"
TRAINED = "trained.safetensors"  # see checkpoint.py


def find_best(folders: list[Path], metric: str) -> Path | None:
    """The first of those with the highest value of a figure; None if none of them has it."""
    found = {folder: read_figures(folder).get(metric) for folder in folders}
    values = {folder: value for folder, value in found.items() if value is not None and not math.isnan(value)}
    return max(values, key=lambda folder: values[folder]) if values else None


def read_figures(folder: Path) -> dict[str, float | None]:
    """The metrics of a checkpoint; {} if it has not been evaluated or its file is damaged."""
    path = folder / FIGURES
    try:
        return read_json(path) if path.is_file() else {}
    except Damaged as error:
        set_aside(path, error)
        return {}


def write_figures(folder: Path, figures: Mapping[str, float | None]) -> None:
    """Note that this checkpoint was evaluated, and what came out."""
    try:
        write_whole(folder / FIGURES, json.dumps(dict(figures), indent=1))
    except OSError as error:
        say(f"{folder / FIGURES}: could not be written ({error}); metrics.jsonl has them")


def newest_good(run: Path, accelerator: "Accelerator") -> Path | None:
    """The newest checkpoint whose every byte is as it was written; None if there is none. Every rank must call it.

    A checkpoint that was changed is renamed to step_NNNNNNN.damaged, and the reason is printed."""
    found = None
    if accelerator.is_main_process:
        for folder in reversed(step_folders(run)):
            reason = find_damage(folder)
            if reason is None:
                found = folder
                break
            aside = folder.with_name(f"{folder.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            print(f"{folder}: {reason}; moved to {aside.name}; trying the one before it", flush=True)
    return from_first_rank(found, accelerator)


def find_damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, read byte by byte; None if nothing is. Raises RunError if this user may not read
    it, which is no damage: another user's checkpoint stays where it is (D-193)."""
    if not is_complete(folder):
        return f"{STATE} is missing or does not fit the files: not written to its end"
    state = read_state(folder)
    if state.get("step") != step_number(folder):
        return f"{STATE} says step {state.get('step')}"
    for name in state["files"]:
        try:
            digest = sha256_of(folder / name)
        except DataError as error:
            if isinstance(error.__cause__, PermissionError):
                raise not_permitted(folder, error) from error
            return str(error)
        if digest != state["sha256"].get(name):
            return f"the bytes of {name} have changed since they were written"
    return None


def not_permitted(folder: Path, error: Exception) -> RunError:
    return RunError(
        f"{folder}: you may not read this checkpoint ({error}); its owner can permit it with `chmod -R g+rX "
        f"{shlex.quote(str(folder.parent))}`"
    )


def refuse_damaged(folder: Path) -> None:
    """Raises RunError if a byte of a checkpoint has changed since it was written."""
    if reason := find_damage(folder):
        raise RunError(f"{folder}: {reason}; remove it to use the one before it, if there is one")


def folder_of(run: Path, step: int) -> Path:
    return run / f"step_{step:07d}"


def step_folders(run: Path) -> list[Path]:
    """Whatever is named like a checkpoint, oldest first."""
    return sorted((path for path in run.glob("step_*") if re.fullmatch(r"step_\d{7,}", path.name)), key=step_number)


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first. One that lost a file or a byte does not count."""
    return [path for path in step_folders(run) if is_complete(path)]


def is_complete(folder: Path) -> bool:
    """Raises RunError if this user may not read it."""
    try:
        files = read_state(folder)["files"].items()
    except PermissionError as error:
        raise not_permitted(folder, error) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in files)


def read_state(folder: Path) -> dict[str, Any]:
    return json.loads((folder / STATE).read_text())


def step_number(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))


def newest_complete(run: Path) -> Path:
    """The newest complete checkpoint.

    Raises:
        RunError: there is none.
    """
    found = checkpoints(run)
    if not found:
        raise RunError(f"{run}: no complete checkpoint here; train it first, or name the right run folder")
    return found[-1]
