"""What a step_NNNNNNN/ folder holds, and how it is written completely or not at all.

    model.safetensors  the method's parameters and buffers: the student, projections, heads; never a teacher. With
                       train.ema_decay it is their average: whoever reads a run gets that
    trained.safetensors  with train.ema_decay: what the training goes on with
    optimizer.pt       the optimizer's state, tensors and numbers only
    state.json         step, world size, train.ema_decay, size and sha256 of every other file: written last
    figures.json       what evaluation found at this step; comes later, not there if nobody evaluated

There is nothing else to keep: data order and randomness are functions of (seed, step).
"""

import json
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from launcher.errors import RunError
from launcher.files import publish, sync_to_disk, tell_refusal
from launcher.processes.group import from_first_rank
from launcher.progress import say
from launcher.run.steps import (
    MODEL,
    OPTIMIZER,
    STATE,
    TRAINED,
    checkpoints,
    find_best,
    folder_of,
    step_folders,
    step_number,
)
from shards.schema import DataError
from shards.tars import sha256_of

if TYPE_CHECKING:
    from accelerate import Accelerator

# A full disk, as Python, our reader, safetensors and torch.save tell it; a RuntimeError of a device is none: see write.
CANNOT_WRITE = (OSError, DataError, SafetensorError, RuntimeError)


def save(
    run: Path,
    step: int,
    method: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: "Accelerator",
    *,
    average: nn.Module | None = None,
    ema_decay: float | None = None,
    keep: int,
    keep_best: str | None = None,
) -> Path:
    """Write RUN/step_NNNNNNN/ under a temporary name, then rename. Every rank must call it.

    Older checkpoints are removed once the new one is complete; see prune.

    Args:
        method: not wrapped for data parallelism; equal on all ranks.
        average: the method with averaged weights, where there is one, and
        ema_decay: of it.

    Raises:
        RunError: on all ranks, if it could not be written; the older ones are still there.
    """
    final = folder_of(run, step)
    problem = None
    if accelerator.is_main_process:
        weights, moments = to_host(method.state_dict()), to_host(optimizer.state_dict())  # what fails here is no disk
        models = {MODEL: weights} if average is None else {MODEL: to_host(average.state_dict()), TRAINED: weights}
        try:
            write(final, models, moments, accelerator.num_processes, ema_decay)
        except CANNOT_WRITE as error:
            good = checkpoints(run)
            problem = (
                f"{final}: could not be saved: {explain_disk(error, run)}; last good checkpoint: "
                f"{good[-1] if good else 'none'}. Then start again: the run continues from there"
            )
    if said := from_first_rank(problem, accelerator):
        raise RunError(said)
    if accelerator.is_main_process:
        prune(run, keep=keep, keep_best=keep_best)
    return final


def to_host(state: Any) -> Any:
    """A state dict whose tensors are on the host."""
    return tree_map_only(Tensor, lambda tensor: tensor.detach().cpu(), state)


def explain_disk(error: Exception, run: Path) -> str:
    """Why a save failed. safetensors and torch.save give no errno, so the free space is reported."""
    if isinstance(error, OSError):
        return tell_refusal(error, run)
    return (
        f"{error}; {shutil.disk_usage(run).free / 1e6:.1f} MB are free on this disk; if that is too little, make room"
    )


def write(
    final: Path,
    models: Mapping[str, dict[str, Tensor]],
    moments: dict[str, Any],
    world_size: int,
    ema_decay: float | None,
) -> None:
    """Write one checkpoint: all bytes are on the disk under a hidden name before it gets its own. The hidden name is
    always the same, so that `prune` finds what a killed process left.

    Args:
        models: {file: weights}.
    """
    temporary = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for file, weights in models.items():
            write_tensors(temporary / file, {name: tensor.contiguous() for name, tensor in weights.items()})
        torch.save(moments, temporary / OPTIMIZER)
        files = sorted(temporary.iterdir())
        state = {
            "step": step_number(final),
            "world_size": world_size,
            "ema_decay": ema_decay,
            "files": {path.name: path.stat().st_size for path in files},
            "sha256": {path.name: sha256_of(path) for path in files},
        }
        (temporary / STATE).write_text(json.dumps(state, indent=1))
        for path in (*files, temporary / STATE):
            sync_to_disk(path)
        shutil.rmtree(final, ignore_errors=True)
        publish(temporary, final)
    except CANNOT_WRITE:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_tensors(path: Path, weights: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file that others may read like any new file here; the package itself gives it to its owner
    alone (D-192)."""
    path.touch()
    mode = path.stat().st_mode
    save_file(weights, path, metadata=metadata)
    if path.stat().st_mode != mode:
        path.chmod(mode)


def prune(run: Path, *, keep: int, keep_best: str | None) -> None:
    """Remove all but the newest `keep` complete checkpoints, the best one, and what a killed process left behind.

    Args:
        keep_best: name of the figure of figures.json whose highest value marks the best; None = there is no best.
    """
    found = checkpoints(run)
    stay = set(found[-keep:])
    if keep_best is not None and (best := find_best(found, keep_best)):
        stay.add(best)
    try:
        for folder in step_folders(run):
            if folder not in stay and step_number(folder) < step_number(found[-1]):
                folder.rename(folder.with_name(f".{folder.name}.old"))  # never seen half removed
        for leftover in run.glob(".step_*"):
            shutil.rmtree(leftover)
    except OSError as error:  # as where another machine reads what goes
        say(f"{run}: an old checkpoint could not be removed ({error}); the next save tries again")


def load(folder: Path, method: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None = None) -> int:
    """Load a checkpoint into an unwrapped method and its optimizer, on any device, to continue training; returns its
    step.

    Args:
        average: gets the averaged weights or, if the run had none, its weights, as at the start of a run.

    Raises:
        RunError: it is of another method or model, or holds more than tensors and numbers.
    """
    load_method(method, folder, TRAINED if (folder / TRAINED).is_file() else MODEL)
    if average is not None:
        load_method(average, folder)
    try:
        state = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise RunError(f"{folder / OPTIMIZER}: is not an optimizer state of tensors and numbers: {error}") from error
    try:
        optimizer.load_state_dict(state)
    except ValueError as error:
        raise RunError(f"{folder / OPTIMIZER}: belongs to a method with other trained parameters: {error}") from error
    return step_number(folder)


def load_method(method: nn.Module, folder: Path, file: str = MODEL) -> None:
    """Load a checkpoint's parameters into an unwrapped method, strictly: those that are read, or another file's.

    Raises:
        RunError: the checkpoint is of another method or model, or its file is not a safetensors file.
    """
    try:
        method.load_state_dict(load_file(folder / file))
    except RuntimeError as error:
        raise RunError(f"{folder}: belongs to another method or model than its config says: {error}") from error
    except SafetensorError as error:
        raise RunError(f"{folder / file}: is not a safetensors file: {error}") from error
