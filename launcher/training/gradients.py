"""What happens to the gradient of a step, and what is drawn in it."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from launcher.processes import zero


def poison_gradient(loss: Tensor) -> Tensor:
    """The loss, but with NaN for gradient if its value is not finite: then every rank sees it after the reduction."""
    return loss * (1 + 0 * loss.detach())


def clip_gradients(optimizer: Any, parameters: list[torch.nn.Parameter], max_norm: float | None) -> Tensor:
    """Length of the whole gradient; scales it in place to at most `max_norm`. DeepSpeed updates the weights, too."""
    if isinstance(optimizer, zero.ZeroOptimizer):
        return optimizer.clip_and_step()
    if max_norm is None:
        return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return torch.nn.utils.clip_grad_norm_(parameters, max_norm)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Key whatever randomness a method draws on the device by (seed, step, rank): resuming needs no state of it."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0]))
