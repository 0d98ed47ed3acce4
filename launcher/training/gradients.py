"""What happens to the gradient of a step, and what is drawn in it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from launcher.processes import zero
from launcher.processes.group import rank_count


class SharedGradient:
    """The gradient of all parameters as one tensor, so that its mean over the ranks is one exchange after the backward
    pass. DDP exchanges it in parts meanwhile, by hooks that a replayed graph does not call.

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
    """The loss, but with NaN for gradient if its value is not finite: then every rank sees it after the reduction."""
    return loss * (1 + 0 * loss.detach())


def clip_gradients(optimizer: Any, parameters: list[nn.Parameter], max_norm: float | None) -> Tensor:
    """Length of the whole gradient; scales it in place to at most `max_norm`. DeepSpeed updates the weights, too."""
    if isinstance(optimizer, zero.ZeroOptimizer):
        return optimizer.clip_and_step()
    if max_norm is None:
        return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return torch.nn.utils.clip_grad_norm_(parameters, max_norm)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Key whatever randomness a method draws on the device by (seed, step, rank): resuming needs no state of it."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0]))
