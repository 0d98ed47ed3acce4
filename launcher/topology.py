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
from launcher.stopping import join_group, run_and_forward

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
    """Data-parallel processes of this run."""
    import torch

    if config.launch.processes is not None:
        return config.launch.processes
    return 1 if uses_cpu(config) else torch.cuda.device_count()


def launch_command(config: Config, module: str, arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The `accelerate launch` argument list that starts a module as configured, and the environment it needs."""
    processes, cpu = process_count(config), uses_cpu(config)
    argv = [sys.executable, "-m", "accelerate.commands.launch"]
    argv += ["--num_machines", "1", "--num_processes", str(processes), "--main_process_port", "0"]
    argv += ["--mixed_precision", config.train.precision, "--dynamo_backend", "no"]
    argv += ["--multi_gpu", *max_restarts(config)] if processes > 1 else []
    argv += ["-m", module, *arguments]
    environment = {}
    if cpu:
        environment = {
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)),
            # glibc returns every large buffer to the kernel and asks for it again: half of a CPU step's time
            "MALLOC_MMAP_MAX_": "0",
            "MALLOC_TRIM_THRESHOLD_": "100000000000",
        }
    return argv, environment


def launch(config: Config, module: str, arguments: Sequence[str]) -> int:
    """Print the launch command and run it; returns its exit code."""
    argv, environment = launch_command(config, module, arguments)
    effective = {**environment, **os.environ, **forced(environment)}
    shown = [f"{name}={effective[name]}" for name in environment] + [shlex.quote(part) for part in argv]
    print("launching: " + " ".join(shown), flush=True)
    return run_and_forward(argv, {**environment, **os.environ, **forced(environment)})


def max_restarts(config: Config) -> list[str]:
    return ["--max_restarts", str(config.launch.max_restarts)] if config.launch.max_restarts else []


def forced(environment: dict[str, str]) -> dict[str, str]:
    """What the user's own environment must not change: without it there would be two unsynchronised trainings."""
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
    accelerator = Accelerator(cpu=cpu, mixed_precision=config.train.precision, kwargs_handlers=handlers)
    wanted = processes or started
    if accelerator.num_processes != wanted or started != wanted:
        raise ConfigError(
            f"launch.processes is {wanted}, but the launcher started {started} and Accelerate joined "
            f"{accelerator.num_processes}: start it with `wsss train`, which prints the right launch command, or set "
            "launch.processes to what you start"
        )
    return accelerator
