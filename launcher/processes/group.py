"""The group of processes of one run: joined, left, and made to agree."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from launcher.errors import RunError

if TYPE_CHECKING:
    from accelerate import Accelerator


def from_first_rank(value: Any, accelerator: "Accelerator") -> Any:
    """What rank 0 has; the others wait for it."""
    if accelerator.num_processes == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def rank_count() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def gather_ranks(tensor: Tensor) -> Tensor:
    """(ranks, *its shape), by rank. All ranks must call it with tensors of one shape and type."""
    if rank_count() == 1:
        return tensor[None].clone()
    parts = [torch.empty_like(tensor) for _ in range(rank_count())]
    torch.distributed.all_gather(parts, tensor.contiguous())
    return torch.stack(parts)


def equalise_buffers(method: nn.Module) -> None:
    """Give all ranks the mean of their BatchNorm statistics, and check that their other saved buffers are equal. All
    ranks must call it.

    The statistics are those of each rank's own images; the mean is what any one of them estimates.

    Raises:
        RunError: on all ranks, buffers differ that the method calls equal.
    """
    if rank_count() == 1:
        return
    for module in method.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for buffer in (module.running_mean, module.running_var):
                if buffer is not None:
                    torch.distributed.all_reduce(buffer)
                    buffer /= rank_count()
    buffers = state_buffers(method)
    if not buffers:
        return
    equal = torch.stack([equals_first_rank(buffer) for buffer in buffers.values()])
    torch.distributed.all_reduce(equal, torch.distributed.ReduceOp.MIN)
    if different := [name for name, same in zip(buffers, equal.tolist(), strict=True) if not same]:
        raise RunError(
            f"method {type(method).__name__}: its buffers {', '.join(different[:8])} differ between the "
            f"{rank_count()} processes, though equal_on_ranks names them: make them equal in Method.synchronise"
        )


def equals_first_rank(buffer: Tensor) -> Tensor:
    """1 where a buffer is that of rank 0, but for rounding, else 0."""
    first = buffer.clone()
    torch.distributed.broadcast(first, 0)
    near = torch.allclose(buffer, first, rtol=1e-3, atol=1e-5, equal_nan=True) if buffer.is_floating_point() else None
    return torch.tensor(int(torch.equal(buffer, first) if near is None else near), device=buffer.device)


def refuse_unequal_state(method: nn.Module, processes: int) -> None:
    """Raise RunError if a run of several processes would train a method whose state nothing makes equal on all of them:
    each would go on with its own, and a checkpoint would hold that of rank 0. See Method."""
    if processes == 1:
        return
    named = [
        f"{name}.{one}".lstrip(".")
        for name, module in method.named_modules()
        for one in getattr(module, "equal_on_ranks", ())
    ]
    unequal = [
        name for name in state_buffers(method) if not any(name == one or name.startswith(f"{one}.") for one in named)
    ]
    if unequal:
        raise RunError(
            f"method {type(method).__name__}: nothing makes its buffers {', '.join(unequal[:8])} equal on the "
            f"{processes} processes of this run: make them so in Method.synchronise and name them in equal_on_ranks; "
            "name them there as well if they are constants; or set launch.processes=1"
        )


def state_buffers(method: nn.Module) -> dict[str, Tensor]:
    """{name: buffer} of those that a checkpoint holds, without the statistics of BatchNorm."""
    saved = method.state_dict(keep_vars=True)
    norms = [name for name, module in method.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    return {
        name: buffer
        for name, buffer in method.named_buffers()
        if name in saved and name.rpartition(".")[0] not in norms
    }


def join_group(backend: str, timeout: timedelta) -> None:
    """Join the processes that elastic launch started, before Accelerate does it.

    The launcher's store outlives a restart, and stale keys in it make new processes connect to dead ones: so each
    attempt has keys of its own. Accelerate uses the group that it finds.
    """
    import torch.distributed as dist

    if dist.is_initialized() or "TORCHELASTIC_RESTART_COUNT" not in os.environ:
        return
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    is_master = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store = dist.TCPStore(host, port, world_size, is_master=is_master, timeout=timeout, multi_tenant=True)
    attempt = dist.PrefixStore(f"attempt_{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    dist.init_process_group(backend, store=attempt, rank=rank, world_size=world_size, timeout=timeout)


@contextmanager
def leaving_group() -> Iterator[None]:
    """Leave the process group at the end, however it ends."""
    import torch.distributed as dist

    try:
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
