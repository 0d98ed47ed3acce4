"""The gradient of a step (averaging, clipping, non-finite values), and the seed of a step's random numbers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from launcher.processes import zero
from launcher.processes.group import rank_count


class SharedGradient:
    """The gradients of all parameters in one tensor, so that averaging over the ranks is one exchange after the
    backward pass. DDP exchanges parts during the backward pass instead, by hooks that a replayed graph does not call,
    and in the first step of a process in another order than later (D-159).

    Args:
        parameters: of one type and device. Their gradients are views of that tensor from now on and must stay so:
            optimizer.zero_grad(set_to_none=False).
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        sizes = [parameter.numel() for parameter in parameters]
        self.whole = torch.zeros(sum(sizes), dtype=parameters[0].dtype, device=parameters[0].device)
        for parameter, part in zip(parameters, self.whole.split(sizes), strict=True):
            parameter.grad = part.view_as(parameter)

    def average(self) -> None:
        """Take the mean over the ranks, which must all call it; rounded as DDP does."""
        self.whole *= 1 / rank_count()
        torch.distributed.all_reduce(self.whole)


def poison_gradient(loss: Tensor) -> Tensor:
    """The loss, but with NaN gradients if its value is not finite, so that every rank notices it after the
    reduction."""
    return loss * (1 + 0 * loss.detach())


def clip_gradients(optimizer: Any, parameters: list[nn.Parameter], max_norm: float | None) -> Tensor:
    """Norm of the whole gradient, which is scaled in place to at most `max_norm`. With DeepSpeed this also updates the
    weights."""
    if isinstance(optimizer, zero.ZeroOptimizer):
        return optimizer.clip_and_step()
    if max_norm is None:
        return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return torch.nn.utils.clip_grad_norm_(parameters, max_norm)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed a method's random numbers on the device by (seed, step, rank), so that resuming needs no generator state."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0]))
