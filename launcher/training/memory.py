"""The message when a GPU runs out of memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from launcher.config.whole import Config
from launcher.errors import RunError
from launcher.processes.precision import half_of
from launcher.run.failure import NotingFailure


@contextmanager
def memory_explained(config: Config, failure: NotingFailure) -> Iterator[None]:
    """Context for the training; raises RunError when the GPU runs out of memory, with what can be done about it."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise explain_memory(error, config, failure.step() or 0) from error


def explain_memory(error: torch.OutOfMemoryError, config: Config, step: int) -> RunError:
    """What a run can do about it.

    Args:
        step: number of steps that are done.
    """
    said = str(error).splitlines()[0] if str(error) else "no more memory"
    peak = ""
    if torch.cuda.is_available():
        whole = torch.cuda.get_device_properties(0).total_memory / 2**30
        peak = f"; the run had {torch.cuda.max_memory_allocated() / 2**30:.1f} of {whole:.1f} GiB at its peak"
    train = config.train
    advice = [f"train.accumulate={2 * train.accumulate} (the same batch in smaller parts)"]
    half = half_of(torch.cuda.get_device_capability()) if torch.cuda.is_available() else "bf16"
    advice += [f"train.precision={half}"] if train.precision in ("ieee", "tf32") and half != "ieee" else []
    advice += ["train.graph=false (a graph keeps memory of its own)"] if train.graph else []
    return RunError(
        f"step {step + 1}: the GPU ran out of memory ({said}){peak}. Start again, from the last checkpoint, with "
        f"{', or '.join(advice)}; or use more GPUs, a smaller data.image_size, or end other programs on this GPU"
    )
