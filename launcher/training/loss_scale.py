"""Loss scaling for float16: the loss is multiplied by the largest factor with which no gradient overflows.

Gradients under 6e-8 are zero in float16. The scale doubles after GROWTH updates without an overflow; an overflow halves
it, and its update is skipped. Everything stays on the device."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

START = 65536.0
GROWTH = 2000  # updates; both as torch.amp.GradScaler has them
KEY = "loss_scale"


class LossScale:
    """The scale of a run. It is kept in the optimizer's first group, so that checkpoints contain it.

    torch's GradScaler, instead, waits for the device after each update to learn of an overflow, and treats a non-finite
    loss as one.

    Attributes:
        state: (3) scale, updates since it last changed, updates that were left out; changed in place, for a CUDA graph
            reads it.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        group = optimizer.param_groups[0]
        self.state = torch.as_tensor(group.get(KEY, [START, 0.0, 0.0]), dtype=torch.float32).to(device)
        self.bad_losses = torch.zeros((), device=device)  # of this step, on this rank
        group[KEY] = self.state

    def up(self, loss: Tensor) -> Tensor:
        return loss * self.state[0]

    @torch.no_grad()
    def down(self, parameters: list[nn.Parameter]) -> None:
        """Divide all gradients by the scale, in place."""
        torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], 1 / self.state[0])

    def see(self, loss: Tensor) -> None:
        """Note whether the loss of a micro-batch is finite."""
        self.bad_losses = self.bad_losses + ~torch.isfinite(loss)

    @torch.no_grad()
    def follow(self, bad_gradient: Tensor, reduce: Callable[[Tensor, str], Tensor]) -> Tensor:
        """Change the scale after a step. Every rank must call it.

        Args:
            bad_gradient: scalar bool, equal on all ranks: is the gradient not finite?
            reduce: (tensor, "sum") -> its sum over the ranks.

        Returns:
            Scalar bool, equal on all ranks: the cause is not an overflow but a non-finite loss, or the scale cannot be
            reduced further.
        """
        scale, since, left_out = self.state.unbind()
        at_fault = (reduce(self.bad_losses, "sum") > 0) | (bad_gradient & (scale <= 1))
        grown = since + 1 >= GROWTH
        changed = torch.where(bad_gradient, scale / 2, torch.where(grown, scale * 2, scale))
        since = torch.where(bad_gradient | grown, 0, since + 1)
        self.state.copy_(torch.stack([changed, since, left_out + bad_gradient]))
        self.bad_losses = torch.zeros_like(self.bad_losses)
        return at_fault
