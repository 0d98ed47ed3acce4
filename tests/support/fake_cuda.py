"""A CUDA device that is none: steps run on tensors without values, and what a GPU would trip over raises.

    with fake_cuda():
        method = without_values(method)      # built on the CPU, now on 'cuda:0'
        with Waits() as waits:
            losses = method(batch, step)
            losses["loss"].backward()
    assert not waits.found

What raises by itself inside: tensors of two devices in one operation, `.item()`, `bool()`, nonzero and shapes that
depend on values. What `Waits` notes: copies between host and device that make the host wait, indexing by a mask or from
the host. What none of this can see: kernels themselves, their speed, and their numbers.
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import get_gradient_edge
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wsss.methods.base import Frozen

aten = torch.ops.aten
CUDA = torch.device("cuda:0")  # with a number: torch asks the driver which device 'cuda' is
ROOT = Path(__file__).resolve().parent.parent.parent
READS_VALUES = {
    aten._local_scalar_dense.default: "item()",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten.equal.default: "equal",
    aten.bincount.default: "bincount",
}


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Inside, tensors have no values and 'cuda:0' is a device, for torch and for an Accelerator that begins here."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    states = (AcceleratorState, GradientState, PartialState)
    with ExitStack() as stack:
        for state in states:
            stack.enter_context(mock.patch.dict(state._shared_state, clear=True))
        stack.enter_context(mock.patch.dict("os.environ", {"ACCELERATE_TORCH_DEVICE": str(CUDA)}))
        for name, value in (
            ("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),  # autocast would turn itself off
            ("torch.cuda.is_bf16_supported", lambda *_, **__: True),
            ("torch.autograd.backward", backward),  # torch's engine asks the driver for its streams
            ("torch.autograd.grad", grad),
            ("torch.nn.Module._apply", apply_to_module),
        ):
            stack.enter_context(mock.patch(name, value))
        stack.enter_context(FakeTensorMode())
        yield


def without_values(module: nn.Module, device: torch.device = CUDA) -> nn.Module:
    """Give a module that was built outside parameters and buffers without values on a device, in place.

    A Frozen teacher stays on the CPU: its first use moves it, as in a run.
    """
    twins: dict[int, Tensor] = {}

    def twin(x: Tensor) -> Tensor:
        return twins.setdefault(id(x), torch.empty(x.shape, dtype=x.dtype, device=device))

    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(twin(parameter), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = twin(buffer)
        for held in vars(part).values():
            if isinstance(held, Frozen):
                without_values(held.network, torch.device("cpu"))
    return module


def hollow(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch of a loader, on the host and without values."""
    empty = {name: torch.empty(x.shape, dtype=x.dtype) for name, x in batch.items() if torch.is_tensor(x)}
    inside = {name: hollow(value) for name, value in batch.items() if isinstance(value, dict)}
    return {**batch, **empty, **inside}


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for the device, as (what, file:line of ours)."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if what := wait_of(func, args, kwargs):
            self.found[what, line_of_ours()] += 1
        return func(*args, **kwargs)


def wait_of(func: Any, args: Any, kwargs: Any) -> str | None:
    if func in (aten._to_copy.default, aten.copy_.default):
        copying = func is aten._to_copy.default
        source = args[0].device if copying else args[1].device
        target = torch.device(kwargs.get("device") or source) if copying else args[0].device
        patient = kwargs.get("non_blocking") or (not copying and len(args) > 2 and args[2])
        if source.type == "cuda" and target.type == "cpu":
            return "copy to the host"
        return "copy from the host" if source.type == "cpu" and target.type == "cuda" and not patient else None
    if not any(x.device.type == "cuda" for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)):
        return None
    if func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
        for index in args[1]:
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                return "index by a mask"
            if index is not None and index.device.type == "cpu" and args[0].device.type == "cuda":
                return "index from the host"
    return READS_VALUES.get(func)


def line_of_ours() -> str:
    frame = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and path != Path(__file__) and "site-packages" not in path.parts:
            return f"{path.relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


# A backward pass that calls torch's own nodes one by one.


def backward(tensors: Any, grad_tensors: Any = None, *_: Any, **__: Any) -> None:
    run_backward(listed(tensors), listed(grad_tensors), None)


def grad(outputs: Any, inputs: Any, grad_outputs: Any = None, *_: Any, **__: Any) -> tuple[Tensor | None, ...]:
    return tuple(run_backward(listed(outputs), listed(grad_outputs), listed(inputs)))


def listed(tensors: Any) -> list[Tensor]:
    return [tensors] if isinstance(tensors, Tensor) else list(tensors or ())


@torch.no_grad()
def run_backward(outputs: list[Tensor], grads: list[Tensor], inputs: list[Tensor] | None) -> list[Tensor | None]:
    """Gradients of the outputs with respect to the inputs; with None, they are added to the leaves."""
    arrived: dict[Any, dict[int, Tensor]] = defaultdict(dict)
    edges = [get_gradient_edge(x) for x in inputs or ()]
    results: list[Tensor | None] = [None] * len(edges)
    before = torch.is_autocast_enabled("cuda")
    torch.set_autocast_enabled("cuda", False)  # as the engine's threads do
    try:
        for number, output in enumerate(outputs):
            edge = get_gradient_edge(output)
            arrived[edge.node][edge.output_nr] = grads[number] if grads else torch.ones_like(output)
        for node in in_order([get_gradient_edge(output).node for output in outputs]):
            slots = arrived.pop(node, {})
            for place, edge in enumerate(edges):
                if edge.node is node and edge.output_nr in slots:
                    results[place] = slots[edge.output_nr]
            if not slots:
                continue
            variable = getattr(node, "variable", None)
            if variable is not None:
                if inputs is None:
                    variable.grad = slots[0].detach() if variable.grad is None else variable.grad + slots[0]
                continue
            ours = isinstance(node, torch.autograd.function.BackwardCFunction)
            count = max(slots) + 1 if ours else len(node._input_metadata)
            given = [slots.get(place) for place in range(count)]
            flows = node.apply(*given) if ours else node(*given)
            for (following, place), flow in zip(node.next_functions, as_tuple(flows), strict=False):
                if following is not None and flow is not None:
                    slot, flow = arrived[following], fitted(flow, following, place)
                    slot[place] = slot[place] + flow if place in slot else flow
    finally:
        torch.set_autocast_enabled("cuda", before)
    return results


def as_tuple(flows: Any) -> tuple:
    return flows if isinstance(flows, tuple) else (flows,)


def fitted(flow: Tensor, node: Any, place: int) -> Tensor:
    """What the engine does with a gradient before it hands it on: sum what was broadcast, cast. Raises for another
    device."""
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        return flow
    wanted = node._input_metadata[place]
    if flow.device != wanted.device:
        raise RuntimeError(f"a gradient on {flow.device} for a tensor on {wanted.device}, at {node.name()}")
    return flow.sum_to_size(tuple(wanted.shape)).to(wanted.dtype)


def in_order(roots: Sequence[Any]) -> list[Any]:
    """The nodes of a graph, each before all that it leads to."""
    seen: set[Any] = set()
    done: list[Any] = []
    stack = [(root, False) for root in roots]
    while stack:
        node, finished = stack.pop()
        if finished:
            done.append(node)
        elif node not in seen:
            seen.add(node)
            stack += [
                (node, True),
                *((following, False) for following, _ in node.next_functions if following is not None),
            ]
    return done[::-1]


def apply_to_module(self: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """nn.Module._apply without the swap that tensors without values refuse; what stays where it is stays itself."""
    for part in self.modules() if recurse else (self,):
        for name, parameter in part._parameters.items():
            if parameter is not None and (moved := fn(parameter.detach())).device != parameter.device:
                part._parameters[name] = nn.Parameter(moved, parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = fn(buffer)
    return self


class Launches(TorchDispatchMode):
    """Counts operations on the device that are no views: about as many kernels are launched."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_view = any(x.alias_info is not None and not x.alias_info.is_write for x in func._schema.arguments)
        computes = func.namespace in ("aten", "wsss") and not is_view and func is not aten._unsafe_view.default
        if computes and any(x.is_cuda for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)):
            self.found[str(func)] += 1
        return func(*args, **(kwargs or {}))
