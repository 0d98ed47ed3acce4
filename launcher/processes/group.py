"""The group of processes of one run: joined, left, and what they tell each other."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch takes seconds to import, and commands that only start processes need none of it
    from accelerate import Accelerator
    from torch import Tensor


def from_first_rank(value: Any, accelerator: "Accelerator") -> Any:
    """What rank 0 has; the others wait for it."""
    if accelerator.num_processes == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def rank_count() -> int:
    import torch

    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def gather_ranks(tensor: "Tensor") -> "Tensor":
    """(ranks, *its shape), by rank. All ranks must call it with tensors of one shape and type."""
    import torch

    here = tensor.contiguous()
    if rank_count() == 1:
        return torch.stack([here])
    parts = [torch.empty_like(here) for _ in range(rank_count())]
    torch.distributed.all_gather(parts, here)
    return torch.stack(parts)


def any_rank(asked: bool) -> bool:
    """Does any rank say yes? All ranks must call it. On the host: on a GPU it waits for no step."""
    import torch

    if rank_count() == 1:
        return asked
    votes = torch.tensor(float(asked))
    torch.distributed.all_reduce(votes)
    return bool(votes.item())


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
