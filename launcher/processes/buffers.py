"""A method's buffers on several processes: averaged, compared, or refused. The rule is in wsss.methods.base.Method."""

import torch
from torch import Tensor, nn

from launcher.errors import RunError
from launcher.processes.group import rank_count


@torch.no_grad()
def begin_as_first_rank(method: nn.Module) -> None:
    """Give all ranks the weights and buffers of rank 0, as DDP does. All ranks must call it."""
    if rank_count() > 1:
        for tensor in (*method.parameters(), *method.buffers()):
            torch.distributed.broadcast(tensor.detach(), 0)


def equalise_buffers(method: nn.Module) -> None:
    """Give all ranks the mean of their BatchNorm statistics, and check that their other saved buffers are equal. All
    ranks must call it.

    Each rank estimates the same statistics from its own images, so their mean is an estimate as well.

    Raises:
        RunError: on all ranks, if buffers differ that the method declares equal.
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
    """1 if a buffer equals that of rank 0 up to rounding, else 0."""
    first = buffer.clone(memory_format=torch.contiguous_format)
    torch.distributed.broadcast(first, 0)
    if buffer.is_floating_point():
        same = torch.allclose(buffer, first, rtol=1e-3, atol=1e-5, equal_nan=True)
    else:
        same = torch.equal(buffer, first)
    return torch.tensor(int(same), device=buffer.device)


def refuse_unequal_state(method: nn.Module, processes: int) -> None:
    """Raise RunError if a run of several processes would train a method with state that nothing makes equal on them:
    each would continue with its own, and a checkpoint would hold that of rank 0. See Method."""
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
    """{name: buffer} of the buffers in a checkpoint, without the statistics of BatchNorm."""
    saved = method.state_dict(keep_vars=True)
    norms = [name for name, module in method.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    return {
        name: buffer
        for name, buffer in method.named_buffers()
        if name in saved and name.rpartition(".")[0] not in norms
    }
