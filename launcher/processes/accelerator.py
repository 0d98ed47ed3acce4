"""How many processes on which devices, as the config says, and the check that the launcher started them.

Accelerate silently starts one process for `--cpu --num_processes 2`, and two trainings that never communicate for
`--multi_gpu` without ACCELERATE_USE_CPU on a machine without a GPU. So `wsss train` writes the flags itself (see
launch.py), and every run checks what was started.
"""

import os
import warnings
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from launcher.config.whole import Config
from launcher.errors import ConfigError
from launcher.processes.group import GROUP_TIMEOUT, join_group
from launcher.processes.precision import set_deterministic, set_precision
from launcher.processes.signals import follow_launcher
from launcher.processes.zero_settings import settings_for

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.utils import GradientAccumulationPlugin

LONGEST_SHARD = timedelta(days=7)  # how long a process of a job waits for one that still has a shard to finish

# On GPUs, the hosts use gloo for messages such as a request to stop, which then need not wait for the device.
BACKENDS = {True: "gloo", False: "cpu:gloo,cuda:nccl"}


def uses_cpu(config: Config) -> bool:
    """Whether the run uses the CPU. Raises ConfigError if the config wants a GPU and there is none."""
    import torch

    available = torch.cuda.is_available()
    if config.launch.device == "cuda" and not available:
        raise ConfigError("launch.device is cuda, but torch sees no GPU here: set launch.device=auto or cpu")
    return config.launch.device == "cpu" or not available


def process_count(config: Config) -> int:
    """Data-parallel processes of this run, over all machines."""
    import torch

    if config.launch.processes is not None:
        return config.launch.processes
    return config.launch.machines * (1 if uses_cpu(config) else torch.cuda.device_count())


def joins_norms(config: Config, processes: int) -> bool:
    """Whether BatchNorm normalises over the images of all processes; torch supports that only on GPUs."""
    import torch

    device = config.launch.device
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    return config.train.sync_norm and processes > 1 and on_gpu


def make_accelerator(config: Config, *, processes: int | None, timeout: timedelta = GROUP_TIMEOUT) -> "Accelerator":
    """The Accelerator of this process, checked.

    Args:
        processes: how many there must be; None = as many as were started.
        timeout: how long a process waits for the others.

    Raises:
        ConfigError: another number of processes than wanted, or processes that do not know of each other.
    """
    from accelerate.utils import DistributedDataParallelKwargs

    from launcher.processes.zero import uses_zero

    cpu, started = uses_cpu(config), count_started()
    if processes is not None and started > 1 and processes != started:  # before it waits for partners
        raise ConfigError(
            f"launch.processes is {processes}, but WORLD_SIZE is {started}: start it with `wsss train`, which ignores "
            "such variables, or set launch.processes to the number that you start"
        )
    # Each rank keeps the BatchNorm statistics of its own images; buffers.equalise_buffers averages them. New versions
    # of torch call the switch forward_sync_buffers, which Accelerate does not pass on yet.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    set_precision(config.train.precision)
    if config.train.deterministic and not cpu:
        set_deterministic()
    settings = settings_for(config, started)
    if settings is None:
        accelerator = join_started(cpu=cpu, timeout=timeout, handlers=[ddp])
    else:
        follow_launcher()
        if started > 1:
            join_group(BACKENDS[cpu], timeout)
        accelerator = zero_accelerator(settings, backend="gloo" if cpu else "nccl")
    wanted = processes or started
    if accelerator.num_processes != wanted or started != wanted:
        raise ConfigError(
            f"launch.processes is {wanted}, but the launcher started {started} and Accelerate joined "
            f"{accelerator.num_processes}: start it with `wsss train`, which prints the right launch command, or set "
            "launch.processes to the number that you start"
        )
    if (settings is not None) != uses_zero(accelerator):
        raise ConfigError(
            f"launch.zero is {config.launch.zero}, but Accelerate runs {accelerator.distributed_type}: start it with "
            "`wsss train`; ACCELERATE_USE_CPU in the environment turns DeepSpeed into DDP"
        )
    return accelerator


def count_started() -> int:
    """Number of processes that a launcher started, including this one."""
    return int(os.environ.get("WORLD_SIZE") or "1")


def join_started(*, cpu: bool, timeout: timedelta, handlers: Sequence[Any] = ()) -> "Accelerator":
    """The Accelerator of this process, joined with those that the launcher started. Its autocast is off, whatever the
    environment says: see in_precision.

    Raises:
        ConfigError: Accelerate joined another number of processes than were started.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import InitProcessGroupKwargs

    follow_launcher()
    started, group = count_started(), list[Any]()
    if started > 1:  # with a backend, Accelerate looks for a group even if there is only one process
        group.append(InitProcessGroupKwargs(backend=BACKENDS[cpu], timeout=timeout))
        join_group(BACKENDS[cpu], timeout)
    else:
        AcceleratorState._reset_state(reset_partial_state=True)  # an earlier run in this process used another device
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision="no",
        gradient_accumulation_plugin=whole_gradients(),
        kwargs_handlers=[*group, *handlers],
    )
    if accelerator.num_processes != started:
        raise ConfigError(
            f"{started} processes were started, but Accelerate joined {accelerator.num_processes}: on CPUs set "
            "ACCELERATE_USE_CPU=true, as the commands of `wsss` do"
        )
    return accelerator


def zero_accelerator(settings: dict[str, Any], *, backend: str) -> "Accelerator":
    """An Accelerator over DeepSpeed with exactly these settings; half precision is DeepSpeed's autocast."""
    from accelerate import Accelerator
    from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs

    if "LOCAL_RANK" not in os.environ:
        raise ConfigError("launch.zero needs processes that a launcher started: use `wsss train`")
    plugin = DeepSpeedPlugin(hf_ds_config=settings)
    group = InitProcessGroupKwargs(backend=backend, timeout=GROUP_TIMEOUT)  # without it, each CPU process is alone
    return Accelerator(
        deepspeed_plugin=plugin,
        mixed_precision="no",
        gradient_accumulation_plugin=whole_gradients(),
        kwargs_handlers=[group],
    )


def whole_gradients() -> "GradientAccumulationPlugin":
    """Tell Accelerate not to divide gradients, since the trainer does. It must be a plugin: the plain argument is
    overridden by ACCELERATE_GRADIENT_ACCUMULATION_STEPS in the environment, which would silently divide them again."""
    from accelerate.utils import GradientAccumulationPlugin

    return GradientAccumulationPlugin(num_steps=1)
