"""What a step_NNNNNNN/ folder holds, and how it gets there whole.

    model.safetensors  the method's parameters and buffers: the student, projections, heads; never a teacher
    optimizer.pt       the optimizer's state, tensors and numbers only
    state.json         step, world size, size and sha256 of every other file: written last
    figures.json       what evaluation found at this step; comes later, not there if nobody evaluated

There is nothing else to keep: data order and randomness are functions of (seed, step).
"""

import json
import math
import os
import pickle
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from launcher.errors import RunError
from launcher.journal import write_whole
from shards.schema import DataError
from shards.tars import sha256_of

if TYPE_CHECKING:
    from accelerate import Accelerator

MODEL, OPTIMIZER, STATE, FIGURES = "model.safetensors", "optimizer.pt", "state.json", "figures.json"
# A full disk, as Python, our reader, safetensors and torch.save tell it.
CANNOT_WRITE = (OSError, DataError, SafetensorError, RuntimeError)


def save(
    run: Path,
    step: int,
    method: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: "Accelerator",
    *,
    keep: int,
    keep_best: str | None = None,
) -> Path:
    """Write RUN/step_NNNNNNN/ under a temporary name, then rename. Every rank must call it.

    Older checkpoints go after the new one stands; see prune.

    Args:
        method: not wrapped for data parallelism; equal on all ranks.

    Raises:
        RunError: on all ranks, if it could not be written; the older ones are still there.
    """
    final = folder_of(run, step)
    problem = None
    if accelerator.is_main_process:
        try:
            write(final, method, optimizer, accelerator.num_processes)
        except CANNOT_WRITE as error:
            good = checkpoints(run)
            problem = (
                f"{final}: could not be saved: {error}; {shutil.disk_usage(run).free / 1e6:.1f} MB are free on this "
                f"disk; last good checkpoint: {good[-1] if good else 'none'}. Make room and start again: the run goes "
                "on from there"
            )
    if said := from_first_rank(problem, accelerator):
        raise RunError(said)
    if accelerator.is_main_process:
        prune(run, keep=keep, keep_best=keep_best)
    return final


def write(final: Path, method: nn.Module, optimizer: torch.optim.Optimizer, world_size: int) -> None:
    """One checkpoint: all bytes on the disk under a hidden name before it gets its own."""
    temporary = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        save_file({name: tensor.contiguous() for name, tensor in method.state_dict().items()}, temporary / MODEL)
        torch.save(optimizer.state_dict(), temporary / OPTIMIZER)
        files = sorted(temporary.iterdir())
        state = {
            "step": step_of(final),
            "world_size": world_size,
            "files": {path.name: path.stat().st_size for path in files},
            "sha256": {path.name: sha256_of(path) for path in files},
        }
        (temporary / STATE).write_text(json.dumps(state, indent=1))
        for path in (*files, temporary / STATE, temporary):
            sync_to_disk(path)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        sync_to_disk(final.parent)
    except CANNOT_WRITE:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def sync_to_disk(path: Path) -> None:
    """Of a file its bytes, of a folder its names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def prune(run: Path, *, keep: int, keep_best: str | None) -> None:
    """Remove all but the newest `keep` complete checkpoints, the best one, and what a killed process left behind.

    Args:
        keep_best: name of the figure of figures.json whose highest value marks the best; None = there is no best.
    """
    found = checkpoints(run)
    stay = set(found[-keep:])
    if keep_best is not None and (best := best_of(found, keep_best)):
        stay.add(best)
    try:
        for folder in step_folders(run):
            if folder not in stay and step_of(folder) < step_of(found[-1]):
                folder.rename(folder.with_name(f".{folder.name}.old"))  # never seen half removed
        for leftover in run.glob(".step_*"):
            shutil.rmtree(leftover)
    except OSError as error:  # as where another machine reads what goes
        print(f"{run}: an old checkpoint could not be removed ({error}); the next save tries again", flush=True)


def best_of(folders: list[Path], metric: str) -> Path | None:
    """The first of those with the highest value of a figure; None if none of them has it."""
    values = {folder: figures_of(folder).get(metric, math.nan) for folder in folders}
    values = {folder: value for folder, value in values.items() if not math.isnan(value)}
    return max(values, key=lambda folder: values[folder]) if values else None


def figures_of(folder: Path) -> dict[str, float]:
    path = folder / FIGURES
    return json.loads(path.read_text()) if path.is_file() else {}


def write_figures(folder: Path, figures: Mapping[str, float]) -> None:
    """Note that this checkpoint was evaluated, and what came out."""
    try:
        write_whole(folder / FIGURES, json.dumps(dict(figures), indent=1))
    except OSError as error:
        print(f"{folder / FIGURES}: could not be written ({error}); metrics.jsonl has the figures", flush=True)


def load(folder: Path, method: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load a checkpoint into an unwrapped method and its optimizer, wherever they are; returns its step.

    Raises:
        RunError: it is of another method or model, or holds more than tensors and numbers.
    """
    load_method(method, folder)
    try:
        state = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise RunError(f"{folder / OPTIMIZER}: is no optimizer state of tensors and numbers: {error}") from error
    optimizer.load_state_dict(state)
    return step_of(folder)


def newest_good(run: Path, accelerator: "Accelerator") -> Path | None:
    """The newest checkpoint whose every byte is as it was written; None if there is none. Every rank must call it.

    One that is not is renamed to step_NNNNNNN.damaged, with a printed reason.
    """
    found = None
    if accelerator.is_main_process:
        for folder in reversed(step_folders(run)):
            reason = damage(folder)
            if reason is None:
                found = folder
                break
            aside = folder.with_name(f"{folder.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            print(f"{folder}: {reason}; set aside as {aside.name}, the one before it is tried", flush=True)
    return from_first_rank(found, accelerator)


def from_first_rank(value: Any, accelerator: "Accelerator") -> Any:
    """What rank 0 has; the others wait for it."""
    if accelerator.num_processes == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, read byte by byte; None if nothing is."""
    if not is_complete(folder):
        return f"{STATE} is missing or does not fit the files: not written to its end"
    state = read_state(folder)
    if state.get("step") != step_of(folder):
        return f"{STATE} says step {state.get('step')}"
    if "sha256" not in state:  # of before there were hashes: sizes are all there is
        return None
    for name in state["files"]:
        try:
            digest = sha256_of(folder / name)
        except DataError as error:
            return str(error)
        if digest != state["sha256"].get(name):
            return f"the bytes of {name} are not those that were written"
    return None


def refuse_damaged(folder: Path) -> None:
    """Raises RunError if a byte of a checkpoint has changed since it was written."""
    if reason := damage(folder):
        raise RunError(f"{folder}: {reason}; remove it to use the one before it, if there is one")


def folder_of(run: Path, step: int) -> Path:
    return run / f"step_{step:07d}"


def step_folders(run: Path) -> list[Path]:
    """Whatever is named like a checkpoint, oldest first."""
    return sorted((path for path in run.glob("step_*") if re.fullmatch(r"step_\d{7,}", path.name)), key=step_of)


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first. One that lost a file or a byte does not count."""
    return [path for path in step_folders(run) if is_complete(path)]


def is_complete(folder: Path) -> bool:
    try:
        files = read_state(folder)["files"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in files)


def read_state(folder: Path) -> dict[str, Any]:
    return json.loads((folder / STATE).read_text())


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))


def latest(run: Path) -> Path:
    """The newest complete checkpoint.

    Raises:
        RunError: there is none.
    """
    found = checkpoints(run)
    if not found:
        raise RunError(f"{run}: no complete checkpoint here; train it first, or name the right run folder")
    return found[-1]


def load_method(method: nn.Module, folder: Path) -> None:
    """Load a checkpoint's parameters into an unwrapped method, strictly.

    Raises:
        RunError: the checkpoint is of another method or model, or its file is no safetensors file.
    """
    try:
        method.load_state_dict(load_file(folder / MODEL))
    except RuntimeError as error:
        raise RunError(f"{folder}: belongs to another method or model than its config says: {error}") from error
    except SafetensorError as error:
        raise RunError(f"{folder / MODEL}: is no safetensors file: {error}") from error


def average_buffers(method: nn.Module) -> None:
    """Give all ranks the mean of their BatchNorm statistics, so that they end equal; all other buffers are so anyway.

    The statistics are those of each rank's own images; the mean is what any one of them estimates.
    """
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return
    for module in method.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for buffer in (module.running_mean, module.running_var):
                if buffer is not None:
                    torch.distributed.all_reduce(buffer)
                    buffer /= torch.distributed.get_world_size()
