"""The exponential moving average of a run's weights, which validation evaluates and which a checkpoint gives its
readers."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

FEW = 0.01  # of an average, that its beginning may still be at the end


def name_beginning(decay: float | None, steps: int) -> str:
    """A line that warns if the average over a whole run still contains much of the initial weights; '' if not."""
    share = 0.0 if decay is None else decay**steps
    if share <= FEW or not steps:
        return ""
    return (
        f"train.ema_decay {decay:g}: after {steps} steps {100 * share:.0f} % of the average is still the initial "
        f"weights; {FEW ** (1 / steps):.3g} leaves {100 * FEW:.0f} % of them"
    )


class Average:
    """A copy of a method whose weights are the moving average of the method's.

        average <- average + (1 - decay) (weights - average)        after each update

    Saved float buffers, such as BatchNorm statistics, are averaged too, since they belong to the averaged weights.
    Counts are copied. Everything stays on the device, without waiting.

    Args:
        method: with its initial weights, with which the average begins; not wrapped. A frozen teacher is not copied.
        decay: in (0, 1); the average spans about 1 / (1 - decay) updates.

    Source: Polyak and Juditsky 1992; the form of torch.optim.swa_utils.
    """

    def __init__(self, method: nn.Module, decay: float, device: torch.device) -> None:
        self.method = copy.deepcopy(method).to(device).eval().requires_grad_(False)
        self.share = 1 - decay
        self.move = get_ema_multi_avg_fn(decay)

    def follow(self, method: nn.Module, left_out: Tensor | None = None) -> None:
        """Update the average after an update of the weights.

        Args:
            left_out: scalar, 1 if the update was skipped and does not count, else 0; None = no update is ever skipped.
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
        """Inside this context the method has the averaged weights, in its own tensors, which a CUDA graph or an engine
        may refer to."""
        self.swap(method)
        try:
            yield
        finally:
            self.swap(method)

    def swap(self, method: nn.Module) -> None:
        for average, weight in self.pairs(method):
            kept = average.clone()
            average.copy_(weight)
            weight.copy_(kept)

    def pairs(self, method: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """(average, weight) for everything that a checkpoint holds, detached."""
        return list(zip(self.method.state_dict().values(), method.state_dict().values(), strict=True))
