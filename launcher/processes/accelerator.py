"""How many processes on what, said once in the config, and the check that the launcher gave it.

Accelerate silently starts one process for `--cpu --num_processes 2`, and two trainings that never talk to each other
for `--multi_gpu` without ACCELERATE_USE_CPU on a machine without a GPU. So `wsss train` writes its flags (see
launch.py), and every run checks what it got.
"""

import os
import warnings
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from launcher.config.sections import Config
from launcher.errors import ConfigError
from launcher.processes.group import join_group
from launcher.processes.signals import follow_launcher
from launcher.processes.zero_settings import settings_for

if TYPE_CHECKING:
    from accelerate import Accelerator

GROUP_TIMEOUT = timedelta(minutes=10)


def uses_cpu(config: Config) -> bool:
    """Raises ConfigError if the config wants a GPU and there is none."""
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


def make_accelerator(config: Config, *, processes: int | None) -> "Accelerator":
    """The Accelerator of this process, checked.

    Args:
        processes: how many there must be; None = as many as were started.

    Raises:
        ConfigError: another number of processes than wanted, or they do not know of each other.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    from launcher.processes.zero import uses_zero

    follow_launcher()
    cpu = uses_cpu(config)
    started = int(os.environ.get("WORLD_SIZE", "1"))
    handlers: list[Any] = []
    if started > 1:  # a stated backend makes Accelerate look for a group even where one process needs none
        handlers.append(InitProcessGroupKwargs(backend="gloo" if cpu else "nccl", timeout=GROUP_TIMEOUT))
        join_group("gloo" if cpu else "nccl", GROUP_TIMEOUT)
    # Each rank keeps the BatchNorm statistics of its own images; buffers.equalise_buffers joins them. New torch
    # calls the switch forward_sync_buffers, but Accelerate does not pass that on yet.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    handlers.append(DistributedDataParallelKwargs(broadcast_buffers=False))
    settings = settings_for(config, started)
    if settings is None:
        accelerator = Accelerator(cpu=cpu, mixed_precision=config.train.precision, kwargs_handlers=handlers)
    else:
        accelerator = zero_accelerator(settings, backend="gloo" if cpu else "nccl")
    wanted = processes or started
    if accelerator.num_processes != wanted or started != wanted:
        raise ConfigError(
            f"launch.processes is {wanted}, but the launcher started {started} and Accelerate joined "
            f"{accelerator.num_processes}: start it with `wsss train`, which prints the right launch command, or set "
            "launch.processes to what you start"
        )
    if (settings is not None) != uses_zero(accelerator):
        raise ConfigError(
            f"launch.zero is {config.launch.zero}, but Accelerate runs {accelerator.distributed_type}: start it with "
            "`wsss train`; ACCELERATE_USE_CPU in the environment turns DeepSpeed into DDP"
        )
    return accelerator


def zero_accelerator(settings: dict[str, Any], *, backend: str) -> "Accelerator":
    """An Accelerator over DeepSpeed with exactly these settings; half precision is DeepSpeed's autocast."""
    from accelerate import Accelerator
    from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs

    if "LOCAL_RANK" not in os.environ:
        raise ConfigError("launch.zero needs processes that a launcher started: use `wsss train`")
    plugin = DeepSpeedPlugin(hf_ds_config=settings, zero3_init_flag=False)
    group = InitProcessGroupKwargs(backend=backend, timeout=GROUP_TIMEOUT)  # unstated, each CPU process is alone
    return Accelerator(deepspeed_plugin=plugin, mixed_precision="no", kwargs_handlers=[group])
