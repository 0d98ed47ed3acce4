"""What a step_NNNNNNN/ folder holds, and how it gets there whole.

    model.safetensors  the method's parameters and buffers: the student, projections, heads; never a teacher
    optimizer.pt       the optimizer's state, tensors and numbers only
    state.json         step, world size, and the size of every other file: written last

There is nothing else to keep: data order and randomness are functions of (seed, step).
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from launcher.errors import RunError

if TYPE_CHECKING:
    from accelerate import Accelerator

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.pt", "state.json"


def save(
    run: Path, step: int, method: nn.Module, optimizer: torch.optim.Optimizer, accelerator: "Accelerator", *, keep: int
) -> Path:
    """Write RUN/step_NNNNNNN/ under a temporary name, then rename. Every rank must call it.

    Older checkpoints beyond the newest `keep` go after the new one stands.

    Args:
        method: not wrapped for data parallelism; equal on all ranks.
    """
    final = run / f"step_{step:07d}"
    if accelerator.is_main_process:
        temporary = run / f".step_{step:07d}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file({name: tensor.contiguous() for name, tensor in method.state_dict().items()}, temporary / MODEL)
        torch.save(optimizer.state_dict(), temporary / OPTIMIZER)
        for path in temporary.iterdir():
            sync_to_disk(path)
        files = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
        state = {"step": step, "world_size": accelerator.num_processes, "files": files}
        (temporary / STATE).write_text(json.dumps(state, indent=1))
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        for old in checkpoints(run)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final


def sync_to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def load(folder: Path, method: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load a checkpoint into an unwrapped method and its optimizer, wherever they are; returns its step."""
    load_method(method, folder)
    optimizer.load_state_dict(torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True))
    return step_of(folder)


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first. One that lost a file or a byte does not count."""
    found = [path for path in run.glob("step_*") if re.fullmatch(r"step_\d{7,}", path.name) and is_complete(path)]
    return sorted(found, key=step_of)


def is_complete(folder: Path) -> bool:
    try:
        files = read_state(folder)["files"]
    except (OSError, ValueError, KeyError):
        return False
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in files.items())


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
        RunError: the checkpoint is of another method or model.
    """
    try:
        method.load_state_dict(load_file(folder / MODEL))
    except RuntimeError as error:
        raise RunError(f"{folder}: belongs to another method or model than its config says: {error}") from error


def average_buffers(method: nn.Module) -> None:
    """Give all ranks the mean of their floating-point buffers, so that they end equal.

    BatchNorm statistics are those of each rank's own images; the mean is what any one of them estimates.
    """
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return
    for buffer in method.buffers():
        if buffer.is_floating_point():
            torch.distributed.all_reduce(buffer)
            buffer /= torch.distributed.get_world_size()
