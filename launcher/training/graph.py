"""A step's forward and backward pass as one CUDA graph: launched once instead of three thousand times.

A step of M-SEE launches about 3,000 kernels of some microseconds each, and the host takes longer to launch them than
the device to compute them. A graph is recorded once for each phase of the method and each shape of batch, and from then
on replayed on new values. It runs the same kernels in the same order. Communication between processes stays outside:
see gradients.SharedGradient."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map_only

from launcher.config.sections import TrainConfig
from wsss.methods.base import Method

Gradient = Callable[[Any, int], dict[str, Tensor]]  # (batch, step) -> losses

WARM = 3
"""Steps of one kind that are run plainly before it is recorded, so that libraries choose and set up their kernels."""


class GraphedGradient:
    """`gradient`, recorded and replayed.

    Args:
        gradient: (batch, step) -> losses; adds to the gradients of the parameters, whose tensors must stay the same:
            optimizer.zero_grad(set_to_none=False).
        phase_of: step -> key of everything else that the losses depend on; see Method.phase.
    """

    def __init__(self, gradient: Gradient, phase_of: Callable[[int], Hashable]) -> None:
        self.gradient, self.phase_of = gradient, phase_of
        self.stream = torch.cuda.Stream()
        self.pool = torch.cuda.graph_pool_handle()  # one for all: only one graph runs at a time
        self.seen: dict[Hashable, int] = {}
        self.recorded: dict[Hashable, Recording] = {}

    def __call__(self, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        tensors = tensors_of(batch)
        kind = (self.phase_of(step), tuple((value.shape, value.dtype) for value in tensors))
        self.seen[kind] = self.seen.get(kind, 0) + 1
        if self.seen[kind] <= WARM:
            return self.aside(batch, step)
        if kind not in self.recorded:
            self.recorded[kind] = self.record(batch, step)
        recording = self.recorded[kind]
        for into, value in zip(recording.inputs, tensors, strict=True):
            into.copy_(value)
        recording.graph.replay()
        losses = recording.losses.clone()  # the next replay overwrites them
        return dict(zip(recording.names, losses.unbind(), strict=True))

    def aside(self, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        """Run it on the stream that records, as recording asks for."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            losses = self.gradient(batch, step)
        torch.cuda.current_stream().wait_stream(self.stream)
        return losses

    def record(self, batch: Mapping[str, Any], step: int) -> "Recording":
        """Record it on copies of the batch's tensors; nothing is computed yet."""
        copied = tree_map_only(Tensor, torch.clone, batch)
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        # Other threads may do as they like meanwhile: loaders pin memory, NCCL's watchdog asks for events.
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            losses = self.gradient(copied, step)
            values = torch.stack([value.detach().float() for value in losses.values()])
        return Recording(graph, tensors_of(copied), tuple(losses), values)


@dataclass(frozen=True)
class Recording:
    """A graph, the tensors that it reads, and the losses that it writes."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    names: tuple[str, ...]
    losses: Tensor


def tensors_of(batch: Mapping[str, Any]) -> list[Tensor]:
    """All tensors of a batch, also of those inside it, in order."""
    return [value for value in tree_leaves(batch) if isinstance(value, Tensor)]


def is_recorded(config: TrainConfig, method: Method, *, device: str, processes: int, zero: bool) -> bool:
    """Whether a run records its steps: if requested, on GPUs, if the method defines phases, and if nothing inside a
    step communicates with other processes, as DeepSpeed's engine (`zero`) and SyncBatchNorm do."""
    joined = config.sync_norm and processes > 1 and any(isinstance(part, _BatchNorm) for part in method.modules())
    return config.graph and device == "cuda" and not zero and not joined and type(method).phase is not Method.phase
