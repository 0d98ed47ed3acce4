"""The group of processes of one run: joining it, leaving it, and messages within it."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from launcher.errors import LAUNCHED

if TYPE_CHECKING:  # torch takes seconds to import, and commands that only start processes do not need it
    from accelerate import Accelerator
    from torch import Tensor

GROUP_TIMEOUT = timedelta(minutes=10)  # how long a process waits for the others
# Variables by which torch, Accelerate and MPI recognise one of several processes.
GROUP_VARIABLES = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "ROLE_WORLD_SIZE"),
    *("GROUP_WORLD_SIZE", "ROLE_NAME", "NODE_RANK", "CROSS_RANK", "CROSS_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("PMI_RANK", "PMI_SIZE", "PMI_FD", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
GROUP_PREFIXES = ("TORCHELASTIC_", "OMPI_COMM_WORLD_", "MV2_COMM_WORLD_")


def from_first_rank(value: Any, accelerator: "Accelerator") -> Any:
    """The value of rank 0; the others wait for it."""
    if accelerator.num_processes == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def rank_count() -> int:
    import torch

    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def gather_ranks(tensor: "Tensor") -> "Tensor":
    """The tensors of all ranks, (ranks, *shape). All ranks must call it with tensors of the same shape and type."""
    import torch

    here = tensor.contiguous()
    if rank_count() == 1:
        return torch.stack([here])
    parts = [torch.empty_like(here) for _ in range(rank_count())]
    torch.distributed.all_gather(parts, here)
    return torch.stack(parts)


def any_rank(asked: bool) -> bool:
    """Whether any rank says yes. All ranks must call it."""
    import torch

    return bool(sum_ranks(torch.tensor(int(asked))).item())


def sum_ranks(tensor: "Tensor") -> "Tensor":
    """The sum of a tensor on the host over the ranks, which does not wait for a GPU. All ranks must call it."""
    import torch

    if rank_count() > 1:
        torch.distributed.all_reduce(tensor)
    return tensor


def forget_group() -> list[str]:
    """Remove the variables with which other programs describe a group of processes; returns the names that were set.

    A `wsss` command starts its processes itself. Otherwise, in a pod of a PyTorchJob or below srun, mpirun or torchrun,
    it would take itself for one of a group and wait for partners that never come.
    """
    found = [name for name in os.environ if name in GROUP_VARIABLES or name.startswith(GROUP_PREFIXES)]
    for name in found:
        del os.environ[name]
    return found


def join_group(backend: str, timeout: timedelta) -> None:
    """Join the processes that a launcher started, before Accelerate does; it then uses this group.

    The launcher's store outlives a restart, and its stale keys would make new processes connect to dead ones, so each
    attempt has its own keys.

    Args:
        timeout: how long a process later waits for another. For their start it waits at most GROUP_TIMEOUT.
    """
    import torch.distributed as dist

    if dist.is_initialized() or not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= set(os.environ):
        return
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    coming = min(timeout, GROUP_TIMEOUT)
    if not os.environ.get(LAUNCHED) and os.environ.get("LOCAL_RANK", "0") == "0":
        minutes = coming.total_seconds() / 60
        message = (
            f"using RANK={rank} WORLD_SIZE={world_size} from the environment: waiting up to {minutes:.0f} min for the "
            f"others at {host}:{port}"
        )
        print(message, file=sys.stderr, flush=True)
    is_master = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store = dist.TCPStore(host, port, world_size, is_master=is_master, timeout=coming, multi_tenant=True)
    attempt = dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group(backend, store=attempt, rank=rank, world_size=world_size, timeout=timeout)


@contextmanager
def leaving_group() -> Iterator[None]:
    """Leave the process group at the end of the block, also after an error."""
    import torch.distributed as dist

    try:
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
