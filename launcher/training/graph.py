"""A step's forward and backward pass as one CUDA graph: launched once instead of three thousand times.

A step of M-SEE launches about 3,000 kernels of some microseconds each, and the host takes longer to launch them than
the device to compute them. A graph is recorded once for each phase of the method and each shape of batch, and from then
on replayed on new values. It computes the same kernels in the same order.
"""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from launcher.processes.zero import uses_zero
from wsss.methods.base import Method

Gradient = Callable[[Any, int], dict[str, Tensor]]  # (batch, step) -> losses

WARM = 3
"""Steps of one kind that are run plainly before it is recorded, so that libraries choose and set up their kernels."""


class GraphedGradient:
    """`gradient`, recorded and replayed.

    Args:
        gradient: (batch, step) -> losses; adds to the gradients of the parameters, whose tensors must stay the same:
            optimizer.zero_grad(set_to_none=False).
        phase_of: step -> what else the losses depend on; see Method.phase.
    """

    def __init__(self, gradient: Gradient, phase_of: Callable[[int], Hashable]) -> None:
        self.gradient, self.phase_of = gradient, phase_of
        self.stream = torch.cuda.Stream()
        self.pool = torch.cuda.graph_pool_handle()  # one for all: only one graph runs at a time
        self.seen: dict[Hashable, int] = {}
        self.recorded: dict[Hashable, tuple[torch.cuda.CUDAGraph, dict[str, Tensor], tuple[str, ...], Tensor]] = {}

    def __call__(self, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        tensors = {name: value for name, value in batch.items() if torch.is_tensor(value)}
        shapes = tuple((name, value.shape, value.dtype) for name, value in tensors.items())
        kind = (self.phase_of(step), shapes)
        self.seen[kind] = self.seen.get(kind, 0) + 1
        if self.seen[kind] <= WARM:
            return self.aside(batch, step)
        if kind not in self.recorded:
            self.recorded[kind] = self.record(batch, tensors, step)
        graph, inputs, names, losses = self.recorded[kind]
        for name, value in tensors.items():
            inputs[name].copy_(value)
        graph.replay()
        return dict(zip(names, losses.clone().unbind(), strict=True))  # the next replay overwrites them

    def aside(self, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        """Run it on the stream that records, as recording asks for."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            losses = self.gradient(batch, step)
        torch.cuda.current_stream().wait_stream(self.stream)
        return losses

    def record(self, batch: Mapping[str, Any], tensors: Mapping[str, Tensor], step: int) -> Any:
        """Record it on copies of the batch's tensors; nothing is computed yet."""
        inputs = {name: value.clone() for name, value in tensors.items()}
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            losses = self.gradient({**batch, **inputs}, step)
            values = torch.stack([value.detach().float() for value in losses.values()])
        return graph, inputs, tuple(losses), values


def may_be_recorded(accelerator: Accelerator, method: Method) -> bool:
    """On one GPU without DeepSpeed, and if the method says which steps are alike."""
    alone = accelerator.device.type == "cuda" and accelerator.num_processes == 1
    return alone and not uses_zero(accelerator) and type(method).phase is not Method.phase
