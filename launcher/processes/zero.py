"""DeepSpeed's ZeRO: optimizer state (stage 1), gradients (2) and weights (3) shared out over the processes.

Checkpoints do not know of any of it: every stage and every number of processes writes the same model.safetensors and
the same optimizer.pt as DDP and reads those of any other. That costs rank 0 the whole optimizer state in host memory
at a save, twice the weights: under 1 GB for the networks here.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from launcher.errors import RunError
from launcher.processes.buffers import equalise_buffers
from launcher.processes.zero_settings import check_engine
from wsss.methods.base import Frozen, Method

if TYPE_CHECKING:
    from accelerate import Accelerator

MOMENTS = ("exp_avg", "exp_avg_sq")


def unsharded_copy(accelerator: "Accelerator", method: Method) -> Method:
    """The module in which all weights of a method are whole: what is saved, evaluated and handed back.

    It is the method itself, but for stage 3, which leaves a process only its share: there it is a second copy, which
    `gather_full` fills. Call it before `prepare`.
    """
    if not uses_zero(accelerator) or stage_of(accelerator) < 3:
        return method
    teachers = [value for module in method.modules() for value in vars(module).values() if isinstance(value, Frozen)]
    return copy.deepcopy(method, {id(teacher): teacher for teacher in teachers}).to(accelerator.device)


def prepare(
    accelerator: "Accelerator", method: nn.Module, full_method: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[nn.Module, Any]:
    """`accelerator.prepare` for DDP and ZeRO: the module to call, and an optimizer with the interface of torch's."""
    if not uses_zero(accelerator):
        return accelerator.prepare(method, optimizer)
    wanted = copy.deepcopy(accelerator.state.deepspeed_plugin.deepspeed_config)
    groups = [list(group["params"]) for group in optimizer.param_groups]
    engine, _ = accelerator.prepare(method, optimizer)
    check_engine(engine, wanted)
    if stage_of(accelerator) == 3:
        gather_per_step(method)
    accelerator.deepspeed_engine_wrapped = BackwardOnly(engine)
    return engine, ZeroOptimizer(engine, method, full_method, groups)


def gather_per_step(method: nn.Module) -> None:
    """Let stage 3 gather all weights at the start of a method's forward and give none away before the update.

    By itself it gathers a layer's weights for that layer's own forward and backward alone. But methods read weights
    elsewhere (class maps from those of a head), and networks return dataclasses, in which DeepSpeed's hooks see no
    tensors. Between steps each process holds its share alone.
    """
    from deepspeed.runtime.zero import register_external_parameter

    for parameter in method.parameters():
        register_external_parameter(method, parameter)
        parameter.is_external_param = True  # type: ignore[attr-defined]


def uses_zero(accelerator: "Accelerator") -> bool:
    return accelerator.distributed_type == "DEEPSPEED"


def stage_of(accelerator: "Accelerator") -> int:
    return accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]["stage"]


@contextmanager
def accumulating(accelerator: "Accelerator", wrapped: nn.Module, *, last: bool) -> Iterator[None]:
    """One micro-batch: ranks exchange gradients only in the last one of a step."""
    if uses_zero(accelerator):
        wrapped.set_gradient_accumulation_boundary(last)  # type: ignore[operator]
        yield
    elif last:
        yield
    else:
        with accelerator.no_sync(wrapped):
            yield


def gather_full(optimizer: Any, full_method: nn.Module, *, moments: bool) -> None:
    """Let `full_method`, and for a save the optimizer's moments, be complete and equal. All ranks must call it."""
    if isinstance(optimizer, ZeroOptimizer):
        optimizer.gather(moments=moments)
    else:
        equalise_buffers(full_method)


class BackwardOnly:
    """What `accelerator.backward` calls. Accelerate's own updates the weights in the same breath and divides the loss
    by the accumulation a second time."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def backward(self, loss: Tensor, sync_gradients: bool = True) -> None:
        self.engine.backward(loss, scale_wrt_gas=False)


class ZeroOptimizer:
    """torch.optim's interface over a DeepSpeed engine, with state dicts that are those of one torch optimizer.

    Args:
        method: whose weights the engine shares out.
        full_method: see `unsharded_copy`.
        groups: parameters of the optimizer's groups, from before the engine took them over.
    """

    def __init__(
        self, engine: Any, method: nn.Module, full_method: nn.Module, groups: list[list[nn.Parameter]]
    ) -> None:
        self.engine, self.method, self.full_method = engine, method, full_method
        self.sizes = [len(group) for group in groups]
        self.parameters = [parameter for group in groups for parameter in group]
        self.partitioned = engine.zero_optimization_stage() == 3
        self.gathered: dict[int, dict[str, Tensor]] = {}

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """torch's own, over this rank's share."""
        return self.engine.optimizer.optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def clip_and_step(self) -> Tensor:
        """Clip and update, which are one call in DeepSpeed; it makes no update if the norm is not finite.

        Returns:
            Length of the whole gradient before clipping.
        """
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        return torch.as_tensor(norm, dtype=torch.float32, device=self.engine.device).detach()

    def step(self) -> None:
        """Done by clip_and_step."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Done by clip_and_step."""

    def shares(self) -> list[Tensor]:
        """This rank's flat share of each group's weights: what torch's optimizer trains."""
        zero = self.engine.optimizer
        return zero.fp32_partitioned_groups_flat if self.partitioned else zero.single_partition_of_fp32_groups

    def gather(self, *, moments: bool) -> None:
        """Fill `full_method`, and on rank 0 the state dict. All ranks must call it."""
        equalise_buffers(self.method)
        if self.partitioned:
            with self.all_weights(), torch.no_grad():
                for here, there in zip(self.method.parameters(), self.full_method.parameters(), strict=True):
                    there.copy_(here)
            for buffer, full_buffer in zip(self.method.buffers(), self.full_method.buffers(), strict=True):
                full_buffer.copy_(buffer)
        self.gathered = {}
        if not moments or not self.optimizer.state:  # before the first update there are none
            return
        from deepspeed.utils import safe_get_full_optimizer_state

        self.link_moments()
        step = self.optimizer.state[self.shares()[0]]["step"]
        for index, parameter in enumerate(self.parameters):
            full = {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
            if torch.distributed.get_rank() == 0:
                self.gathered[index] = {"step": step.cpu().clone(), **{key: full[key].cpu().clone() for key in full}}

    def all_weights(self, modifier_rank: int | None = None) -> Any:
        from deepspeed.runtime.zero import GatheredParameters

        return GatheredParameters(list(self.method.parameters()), modifier_rank=modifier_rank)

    def state_dict(self) -> dict[str, Any]:
        """As torch's; on rank 0, of the last `gather`."""
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
        """Share out the weights that `full_method` holds and the moments of a state dict of DDP or any stage.

        Raises:
            RunError: it belongs to other parameters.
        """
        sizes = [len(group["params"]) for group in state["param_groups"]]
        if sizes != self.sizes:
            raise RunError(f"optimizer state has groups of {sizes} parameters, this run of {self.sizes}")
        self.load_weights()
        if not state["state"]:
            return
        step = state["state"][0]["step"]
        for share in self.shares():
            zeros = {key: torch.zeros_like(share) for key in MOMENTS}
            self.optimizer.state[share] = {"step": step.clone().to(share.device), **zeros}
        self.link_moments()
        for index, parameter in enumerate(self.parameters):
            for key in MOMENTS:
                self.set_moment(parameter, key, state["state"][index][key].to(self.engine.device))

    def link_moments(self) -> None:
        """Let stages 1 and 2 find each parameter's moments. DeepSpeed 0.19 does it once, after the first update of the
        first group, when the other groups have none yet."""
        if not self.partitioned:
            self.engine.optimizer._hp_optimizer_states_linked = False
            self.engine.optimizer._lazy_init_hp_params_optimizer_state()

    def load_weights(self) -> None:
        if not self.partitioned:
            self.engine.optimizer.refresh_fp32_params()
            return
        from deepspeed.utils import safe_set_local_fp32_param

        with self.all_weights(modifier_rank=0), torch.no_grad():
            for here, there in zip(self.method.parameters(), self.full_method.parameters(), strict=True):
                here.copy_(there)
        for buffer, full_buffer in zip(self.method.buffers(), self.full_method.buffers(), strict=True):
            buffer.copy_(full_buffer)
        for parameter in self.parameters:
            safe_set_local_fp32_param(parameter, parameter.ds_tensor.detach())  # type: ignore[attr-defined]

    def set_moment(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if not self.partitioned:
            safe_set_full_optimizer_state(parameter, value, key)
            return
        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]  # every rank has as many, so the last share may end in padding
        padded = value.new_zeros(size * torch.distributed.get_world_size())
        padded[: value.numel()] = value.flatten()
        safe_set_local_optimizer_state(parameter, padded[torch.distributed.get_rank() * size :][:size], key)
