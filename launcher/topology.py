"""How many processes on what, said once in the config: the launch command that gives it, and the check that it did.

Accelerate silently starts one process for `--cpu --num_processes 2`, and two trainings that never talk to each other
for `--multi_gpu` without ACCELERATE_USE_CPU on a machine without a GPU. So nobody should have to know its flags, and
every run asserts what it got.
"""

import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from launcher.config import Config
from launcher.errors import ConfigError
from launcher.stopping import begin_under_launcher, join_group, run_and_forward
from launcher.zero import uses_zero
from launcher.zero_settings import read_zero, settings_for

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


def launch_command(config: Config, module: str, arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The `accelerate launch` argument list that starts a module as configured, and the environment it needs."""
    processes, cpu = process_count(config), uses_cpu(config)
    zero, where = read_zero(config), config.launch
    argv = [sys.executable, "-m", "accelerate.commands.launch", "--quiet"]  # of one process: no traceback of its own
    argv += ["--num_machines", str(where.machines), "--num_processes", str(processes)]
    argv += ["--main_process_port", str(where.port)]
    if where.machines > 1:
        argv += ["--machine_rank", str(where.machine_rank), "--main_process_ip", str(where.main_address)]
    argv += ["--mixed_precision", config.train.precision, "--dynamo_backend", "no"]
    if zero is not None:
        argv += ["--use_deepspeed", "--zero_stage", str(zero["zero_optimization"]["stage"])]
        # the default would start the other machines itself, through pdsh
        argv += ["--deepspeed_multinode_launcher", "standard"]
    elif processes > 1:
        argv += ["--multi_gpu"]
    if processes > 1 and where.max_restarts:
        argv += ["--max_restarts", str(where.max_restarts)]
    argv += ["-m", module, *arguments]
    environment: dict[str, str] = {}
    if cpu:
        environment |= {"DS_ACCELERATOR": "cpu"} if zero is not None else {}
        environment |= {
            # with it Accelerate runs DDP where DeepSpeed was asked for, without it two trainings where DDP was
            "ACCELERATE_USE_CPU": "true" if zero is None else "false",
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) * where.machines // processes)),
            # glibc returns every large buffer to the kernel and asks for it again: half of a CPU step's time
            "MALLOC_MMAP_MAX_": "0",
            "MALLOC_TRIM_THRESHOLD_": "100000000000",
        }
    return argv, environment


def launch(config: Config, module: str, arguments: Sequence[str]) -> int:
    """Print the launch command and run it; returns its exit code. A SIGTERM goes on to the processes that train."""
    argv, environment = launch_command(config, module, arguments)
    effective = {**environment, **os.environ, **forced(environment)}
    shown = [f"{name}={effective[name]}" for name in environment] + [shlex.quote(part) for part in argv]
    print("launching: " + " ".join(shown), flush=True)
    return run_and_forward(argv, effective)


def forced(environment: dict[str, str]) -> dict[str, str]:
    """What the user's own environment must not change: it decides whether the processes find each other, and how."""
    return {name: value for name, value in environment.items() if name == "ACCELERATE_USE_CPU"}


def make_accelerator(config: Config, *, processes: int | None) -> "Accelerator":
    """The Accelerator of this process, checked.

    Args:
        processes: how many there must be; None = as many as were started.

    Raises:
        ConfigError: another number of processes than wanted, or they do not know of each other.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    begin_under_launcher()
    cpu = uses_cpu(config)
    started = int(os.environ.get("WORLD_SIZE", "1"))
    handlers: list[Any] = []
    if started > 1:  # a stated backend makes Accelerate look for a group even where one process needs none
        handlers.append(InitProcessGroupKwargs(backend="gloo" if cpu else "nccl", timeout=GROUP_TIMEOUT))
        join_group("gloo" if cpu else "nccl", GROUP_TIMEOUT)
    # Each rank keeps the BatchNorm statistics of its own images; checkpoint.average_buffers joins them. New torch
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
