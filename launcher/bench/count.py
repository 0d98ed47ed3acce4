"""A step counted without computing it: FLOPs, memory traffic, launches, and what is kept for the backward pass.

It is counted on fake tensors, which have shape, type and device but no values, so it needs hardly any memory or time.
The launches are nearly those on a GPU.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from wsss.tensors import as_on_gpu

PAIRS = "pairs"  # our kernel that sums over all pairs of pixels: half precision whatever train.precision is
ATTENTION = "attention"  # in float32, for which TF32 does not exist


def count_flops(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    """torch's own count, plus attention on CPUs, which torch does not count."""
    name = func._overloadpacket.__name__
    if name == "_scaled_dot_product_flash_attention_for_cpu":
        return int(sdpa_flop_count(*(tensor.shape for tensor in args[:3])))
    if name == "_scaled_dot_product_flash_attention_for_cpu_backward":
        return int(sdpa_backward_flop_count(*(tensor.shape for tensor in args[:4])))
    count = flop_registry.get(func._overloadpacket)
    return int(count(*args, **kwargs, out_val=out)) if count is not None else 0


@dataclass
class Counted:
    """What a step does.

    Attributes:
        ops: (FLOPs, bytes read and written, type of number: bf16, float32, ATTENTION or PAIRS) of each launch; float16
            counts as bf16.
        kept_bytes: bytes that the forward pass keeps for the backward pass, without parameters.
    """

    ops: list[tuple[int, int, str]] = field(default_factory=list)
    kept_bytes: int = 0

    @property
    def flops(self) -> int:
        return sum(flops for flops, _, _ in self.ops)


class Counter(TorchDispatchMode):
    """Notes every operator that launches something."""

    def __init__(self) -> None:
        super().__init__()
        self.found = Counted()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        flops = count_flops(func, args, kwargs, out)
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if not outputs or (flops == 0 and is_view(func)):
            return out
        name = func._overloadpacket.__name__
        if name == "par_propagate":
            from wsss.maps.par_triton import bytes_of_iteration

            self.found.ops += [(0, bytes_of_iteration(*args[:2]), "float32")] * args[3]
            return out
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        traffic = sum(tensor.numel() * tensor.element_size() for tensor in (*inputs, *outputs))
        kind = "bf16" if outputs[0].dtype in (torch.bfloat16, torch.float16) else "float32"
        if name == "gaussian_sum":
            kind = PAIRS
        elif flops and "attention" in name and kind == "float32":  # with one head: the sum over pairs without Triton
            kind = PAIRS if args[0].shape[1] == 1 else ATTENTION
        self.found.ops.append((flops, traffic, kind))
        return out


def is_view(func: Any) -> bool:
    """Whether an operator only gives a new name to existing memory."""
    returns = func._schema.returns
    aliases = any(one.alias_info is not None and not one.alias_info.is_write for one in returns)
    return func.is_view or aliases or func._overloadpacket.__name__ == "_unsafe_view"  # which does not say so


@contextmanager
def keeping(found: Counted, but_not: set[int]) -> Iterator[None]:
    """Add up what is kept for the backward pass, each storage once, without the storages in `but_not`."""
    seen: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in but_not:
            seen[storage._cdata] = storage  # kept alive, so that no other storage gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield
    found.kept_bytes += sum(storage.nbytes() for storage in seen.values())


def count_step(loss_of: Callable[[], Tensor], there: set[int], *, backward: bool = True) -> Counted:
    """Count forward and backward pass of a step.

    Args:
        loss_of: the forward pass, on fake or meta tensors.
        there: `storage_ids` of parameters and buffers.
        backward: False = only the forward pass.
    """
    with as_on_gpu(), Counter() as counter:
        with keeping(counter.found, there):
            loss = loss_of()
        if backward:
            loss.backward()
    return counter.found


def storage_ids(tensors: Iterable[Tensor]) -> set[int]:
    return {tensor.untyped_storage()._cdata for tensor in tensors}
