"""DeepSpeed's ZeRO: optimizer state (stage 1) and gradients (stage 2) distributed over the processes.

Checkpoints do not depend on it: every stage and every number of processes writes the same model.safetensors and
optimizer.pt as DDP, and reads those of any other. For this, rank 0 holds the whole optimizer state in host memory at a
save, twice the weights: under 1 GB for the networks here.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from launcher.errors import RunError
from launcher.processes.buffers import begin_as_first_rank
from launcher.processes.zero_settings import check_engine

if TYPE_CHECKING:
    from accelerate import Accelerator

MOMENTS = ("exp_avg", "exp_avg_sq")


def prepare(
    accelerator: "Accelerator", method: nn.Module, optimizer: torch.optim.Optimizer, *, wrap: bool
) -> tuple[nn.Module, Any]:
    """`accelerator.prepare` for DDP and ZeRO: the module to call, and an optimizer with the interface of torch's.

    Args:
        wrap: False = no DDP: the caller averages the gradients; all ranks begin with the method of rank 0.
    """
    if not wrap:
        begin_as_first_rank(method.to(accelerator.device))
        return method, accelerator.prepare(optimizer)
    if not uses_zero(accelerator):
        return accelerator.prepare(method, optimizer)
    wanted = copy.deepcopy(accelerator.state.deepspeed_plugin.deepspeed_config)
    groups = [list(group["params"]) for group in optimizer.param_groups]
    engine, _ = accelerator.prepare(method, optimizer)
    check_engine(engine, wanted)
    accelerator.deepspeed_engine_wrapped = BackwardOnly(engine)
    return engine, ZeroOptimizer(engine, groups)


def uses_zero(accelerator: "Accelerator") -> bool:
    return accelerator.distributed_type == "DEEPSPEED"


@contextmanager
def accumulating(accelerator: "Accelerator", wrapped: nn.Module, *, last: bool) -> Iterator[None]:
    """One micro-batch; ranks exchange gradients only in the last one of a step."""
    if uses_zero(accelerator):
        wrapped.set_gradient_accumulation_boundary(last)  # type: ignore[operator]
        yield
    elif last:
        yield
    else:
        with accelerator.no_sync(wrapped):
            yield


class BackwardOnly:
    """What `accelerator.backward` calls. Accelerate's own class would also update the weights, and divide the loss by
    the accumulation a second time."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def backward(self, loss: Tensor, sync_gradients: bool = True) -> None:
        self.engine.backward(loss, scale_wrt_gas=False)


class ZeroOptimizer:
    """torch.optim's interface over a DeepSpeed engine, with state dicts that are those of one torch optimizer.

    Args:
        groups: parameters of the optimizer's groups, before the engine took them over.
    """

    def __init__(self, engine: Any, groups: list[list[nn.Parameter]]) -> None:
        self.engine = engine
        self.sizes = [len(group) for group in groups]
        self.parameters = [parameter for group in groups for parameter in group]
        self.gathered: dict[int, dict[str, Tensor]] = {}

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """torch's optimizer of this rank's share."""
        return self.engine.optimizer.optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def clip_and_step(self) -> Tensor:
        """Clip and update, which are one call in DeepSpeed; without an update if the norm is not finite.

        Returns:
            Norm of the whole gradient before clipping.
        """
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        return torch.as_tensor(norm, dtype=torch.float32, device=self.engine.device).detach()

    def step(self) -> None:
        """Done by clip_and_step."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Done by clip_and_step."""

    def shares(self) -> list[Tensor]:
        """This rank's flat share of each group's weights, which torch's optimizer trains."""
        return self.engine.optimizer.single_partition_of_fp32_groups

    def gather(self) -> None:
        """Fill the state dict on rank 0. All ranks must call it."""
        self.gathered = {}
        if not self.optimizer.state:  # none before the first update
            return
        from deepspeed.utils import safe_get_full_optimizer_state

        self.link_moments()
        step = self.optimizer.state[self.shares()[0]]["step"]
        for index, parameter in enumerate(self.parameters):
            full = {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
            if torch.distributed.get_rank() == 0:
                self.gathered[index] = {"step": step.cpu().clone(), **{key: full[key].cpu().clone() for key in full}}

    def state_dict(self) -> dict[str, Any]:
        """In torch's form; on rank 0, from the last `gather`."""
        numbers = iter(range(len(self.parameters)))
        groups = [
            {
                **{key: value for key, value in group.items() if key != "params"},
                "params": [next(numbers) for _ in range(n)],
            }
            for group, n in zip(self.param_groups, self.sizes, strict=True)
        ]
        return {"state": self.gathered, "param_groups": groups}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Distribute the method's current weights, and the moments of a state dict from DDP or any stage.

        Raises:
            RunError: it belongs to other parameters.
        """
        from deepspeed.utils import safe_set_full_optimizer_state

        sizes = [len(group["params"]) for group in state["param_groups"]]
        if sizes != self.sizes:
            raise RunError(f"optimizer state has groups of {sizes} parameters, this run of {self.sizes}")
        self.engine.optimizer.refresh_fp32_params()
        if not state["state"]:
            return
        step = state["state"][0]["step"]
        for share in self.shares():
            zeros = {key: torch.zeros_like(share) for key in MOMENTS}
            self.optimizer.state[share] = {"step": step.clone().to(share.device), **zeros}
        self.link_moments()
        for index, parameter in enumerate(self.parameters):
            for key in MOMENTS:
                safe_set_full_optimizer_state(parameter, state["state"][index][key].to(self.engine.device), key)

    def link_moments(self) -> None:
        """Make each parameter's moments accessible. DeepSpeed 0.19 does it only once, after the first update of the
        first group, when the other groups have none yet."""
        self.engine.optimizer._hp_optimizer_states_linked = False
        self.engine.optimizer._lazy_init_hp_params_optimizer_state()
