"""The losses of the steps since a run last logged."""

import torch
from accelerate import Accelerator
from torch import Tensor

from launcher.training.nonfinite import Micro


class LossWindow:
    """Sums of losses, on the device and without waiting for it.

    Attributes:
        sums: {loss: its sum over the micro-batches of this rank}.
        batches: how many these are.
        unchecked: this rank's micro-batches since the last check that everything is finite.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.batches = 0
        self.unchecked: list[Micro] = []

    def add(self, micro: Micro) -> None:
        for name, value in micro.losses.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.batches += 1
        self.unchecked.append(micro)

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Every loss, averaged over the micro-batches and over the ranks, which must all call it."""
        names = sorted(self.sums)
        means = torch.stack([self.sums[name] for name in names]) / self.batches
        return dict(zip(names, accelerator.reduce(means, "mean").tolist(), strict=True))
