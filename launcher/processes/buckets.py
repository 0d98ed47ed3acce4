"""The order in which DDP sums gradients: that of all steps in the first one, too."""

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def settle_buckets(wrapped: nn.Module) -> None:
    """Let DDP put the gradients into their buckets for good, before the first step. All ranks must call it.

    After its first backward pass it sorts them anew, as they came in. Three and more ranks then add the parts of a
    gradient up in another order, so that the first step of a start would differ in its last bits from the same step of
    a run that nobody stopped. Whatever pass is the first one counts: this one, of nothing, in the order of the
    parameters (D-180).
    """
    if not isinstance(wrapped, DistributedDataParallel):
        return
    trained = [parameter for parameter in wrapped.module.parameters() if parameter.requires_grad]

    def nothing() -> torch.Tensor:
        return 0.0 * torch.stack([parameter.sum() for parameter in trained]).sum()

    own = vars(wrapped.module)
    before = own.get("forward")  # of this object alone; it has none, unless somebody wrapped the class's
    own["forward"] = nothing
    try:
        wrapped().backward()
    finally:
        own.pop("forward") if before is None else own.update(forward=before)
    wrapped.zero_grad(set_to_none=True)
