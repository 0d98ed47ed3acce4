"""The message when a loss or gradient is not finite, collected from all ranks."""

import math
from pathlib import Path
from typing import NamedTuple

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from launcher.errors import RunError
from launcher.files import typed
from launcher.run import steps

SHOWN = 64  # sample keys of a rank that a message names


class NotFinite(RunError):
    """A loss or gradient is not finite.

    Attributes:
        next_command: the command that shows where it originates.
    """

    def __init__(self, message: str, next_command: str) -> None:
        super().__init__(message)
        self.next_command = next_command


class Micro(NamedTuple):
    """One micro-batch as a rank saw it.

    Attributes:
        step: 1-based, the one that its update would have ended.
        losses: detached scalars on the device.
    """

    step: int
    keys: list[str]
    losses: dict[str, Tensor]


class Culprit(NamedTuple):
    """One rank's report about the bad step."""

    rank: int
    losses: list[dict[str, float]]  # per micro-batch
    keys: list[str]

    @property
    def is_finite(self) -> bool:
        return all(math.isfinite(value) for losses in self.losses for value in losses.values())


def explain_nonfinite(bad_step: int, seen: list[Micro], run: Path, accelerator: Accelerator) -> str:
    """The error that says what was not finite, where, and what to do: complete on rank 0, one line on the others. Every
    rank must call it.

    Args:
        bad_step: the first one that was not finite, equal on all ranks.
        seen: this rank's micro-batches, those of the bad step among them.
    """
    micros = [micro for micro in seen if micro.step == bad_step]
    here = Culprit(
        accelerator.process_index,
        [{name: value.item() for name, value in micro.losses.items()} for micro in micros],
        [key for micro in micros for key in micro.keys],
    )
    everyone = gather_object([here])
    head = f"non-finite loss or gradient at step {bad_step}"
    if not accelerator.is_main_process:
        return f"{head}; rank 0 says more"
    guilty = [rank for rank in everyone if not rank.is_finite]
    good = steps.checkpoints(run)
    parts = [head, *map(explain_rank, guilty)]
    if not guilty:
        parts += ["all losses are finite, a gradient is not", *map(explain_rank, everyone)]
    parts += [
        f"last good checkpoint: {good[-1] if good else 'none'}",
        "no update was made from it",
        f"to see where it begins: `{typed('replay', run, '--step', bad_step)}`",
        "to continue: lower train.lr, set train.max_grad_norm or look at these samples",
    ]
    return "; ".join(parts)


def explain_rank(rank: Culprit) -> str:
    losses = " | ".join(", ".join(f"{name} {value:g}" for name, value in part.items()) for part in rank.losses)
    return f"rank {rank.rank}: {losses}, samples {list_keys(rank.keys)}"


def list_keys(keys: list[str]) -> str:
    return ", ".join(keys[:SHOWN]) + (f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else "")
