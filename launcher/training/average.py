"""The exponential moving average of a run's weights: what validation judges, and what readers of a checkpoint get."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

FEW = 0.01  # of an average, that its beginning may still be at the end


def name_beginning(decay: float | None, steps: int) -> str:
    """A line where the average of a whole run is still in part the weights that it began with; '' where it is not."""
    share = 0.0 if decay is None else decay**steps
    if share <= FEW or not steps:
        return ""
    return (
        f"train.ema_decay {decay:g}: after {steps} steps {100 * share:.0f} % of the average is still the initial "
        f"weights; {FEW ** (1 / steps):.3g} leaves {100 * FEW:.0f} % of them"
    )


class Average:
    """A copy of a method whose weights follow it.

        average <- average + (1 - decay) (weights - average)        after each update

    Saved buffers of floats, as the statistics of BatchNorm, are averaged alike: they belong to the averaged weights.
    Counts are copied. All of it stays on the device and waits for nothing.

    Args:
        method: at its initial weights, with which the average begins; not wrapped. A frozen teacher is not copied.
        decay: in (0, 1); 1 / (1 - decay) updates are what it remembers.

    Source: Polyak and Juditsky 1992; the form of torch.optim.swa_utils.
    """

    def __init__(self, method: nn.Module, decay: float, device: torch.device) -> None:
        self.method = copy.deepcopy(method).to(device).eval().requires_grad_(False)
        self.share = 1 - decay
        self.move = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def follow(self, method: nn.Module, left_out: Tensor | None = None) -> None:
        """Move after an update.

        Args:
            left_out: scalar, 1 where the update was left out and counts for nothing, else 0; None = none ever is.
        """
        pairs = self.pairs(method)
        averages, weights = (list(side) for side in zip(*(p for p in pairs if p[0].is_floating_point()), strict=True))
        if left_out is None:
            self.move(averages, weights, 0)
        else:
            torch._foreach_lerp_(averages, weights, [self.share * (1 - left_out)] * len(averages))
        for average, count in pairs:
            if not average.is_floating_point():
                average.copy_(count)

    @contextmanager
    def in_place_of(self, method: nn.Module) -> Iterator[None]:
        """The method has the averaged weights inside, in its own tensors, which a CUDA graph or an engine may know."""
        self.swap(method)
        try:
            yield
        finally:
            self.swap(method)

    @torch.no_grad()
    def swap(self, method: nn.Module) -> None:
        for average, weight in self.pairs(method):
            kept = average.clone()
            average.copy_(weight)
            weight.copy_(kept)

    def pairs(self, method: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """(average, weight) of all that a checkpoint holds."""
        return list(zip(self.method.state_dict().values(), method.state_dict().values(), strict=True))
