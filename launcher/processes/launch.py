"""Start `accelerate launch` with the arguments and environment that a config needs."""

import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from launcher.config.whole import Config
from launcher.errors import ConfigError
from launcher.processes.accelerator import process_count, uses_cpu
from launcher.processes.forward import run_and_forward, tell
from launcher.processes.surroundings import count_cores, find_ours, without_accelerate
from launcher.processes.zero_settings import read_zero

ACCELERATE = Path(__file__).with_name("accelerate.yaml")
FORCED = ("ACCELERATE_USE_CPU", "PYTHONSAFEPATH", "PYTHONPATH")
NAME_S = 300.0  # how long the first machine's name may lack an address: pods start at different times
LOOK_UP_EVERY_S = 2.0


def launch_command(config: Config, module: str, arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The `accelerate launch` argument list that starts a module as configured, and the environment it needs."""
    processes, cpu = process_count(config), uses_cpu(config)
    zero, where = read_zero(config), config.launch
    argv = [sys.executable, "-m", "accelerate.commands.launch", "--quiet"]  # no traceback of its own
    argv += ["--config_file", str(ACCELERATE)]  # else the user's own config, made for another project, is used
    argv += ["--num_machines", str(where.machines), "--num_processes", str(processes)]
    argv += ["--main_process_port", str(where.port)]
    if where.machines > 1:
        argv += ["--machine_rank", str(where.machine_rank), "--main_process_ip", str(where.main_address)]
    argv += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    if zero is not None:
        argv += ["--use_deepspeed", "--zero_stage", str(zero["zero_optimization"]["stage"])]
        # the default would start the other machines itself, through pdsh
        argv += ["--deepspeed_multinode_launcher", "standard"]
    elif processes > 1:
        argv += ["--multi_gpu"]
    if processes > 1 and where.max_restarts:
        argv += ["--max_restarts", str(where.max_restarts)]
    argv += ["-m", module, *arguments]
    environment = find_ours()
    if config.train.deterministic and not cpu:
        environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    if cpu:
        environment |= {"DS_ACCELERATOR": "cpu"} if zero is not None else {}
        environment |= {
            # with it, Accelerate runs DDP instead of DeepSpeed; without it, two trainings instead of DDP
            "ACCELERATE_USE_CPU": "true" if zero is None else "false",
            "OMP_NUM_THREADS": str(max(1, count_cores() * where.machines // processes)),
            # else glibc returns every large buffer to the kernel and requests it again: half of a CPU step's time
            "MALLOC_MMAP_MAX_": "0",
            "MALLOC_TRIM_THRESHOLD_": "100000000000",
        }
    return argv, environment


def launch(config: Config, module: str, arguments: Sequence[str], *, verbose: bool = False) -> int:
    """Say what is started and run it; returns its exit code. A SIGTERM is passed on to the training processes.

    Args:
        verbose: print the launch command.
    """
    print(show_launch(config, module, arguments) if verbose else describe_launch(config), flush=True)
    argv, environment = launch_command(config, module, arguments)
    if config.launch.machines > 1:
        await_address(str(config.launch.main_address))
        tell(
            f"machine {config.launch.machine_rank} of {config.launch.machines}: waiting for the others at "
            f"{config.launch.main_address}:{config.launch.port}, half an hour at most; SIGTERM or Ctrl-C ends the wait",
        )
    return run_and_forward(argv, effective(environment))


def describe_launch(config: Config) -> str:
    """How many processes on which devices, in a few words."""
    count, machines = process_count(config), config.launch.machines
    where = "CPU" if uses_cpu(config) else "GPU"
    places = f", machine {config.launch.machine_rank} of {machines}" if machines > 1 else ""
    return f"{config.name}: {count} process{'es' if count > 1 else ''} on {where}{'s' if count > 1 else ''}{places}"


def show_launch(config: Config, module: str, arguments: Sequence[str]) -> str:
    """The launch command as a line for a shell, with the environment it needs."""
    argv, environment = launch_command(config, module, arguments)
    in_force = effective(environment)
    return shlex.join(["env", *(f"{name}={in_force[name]}" for name in environment), *argv])


def effective(environment: dict[str, str]) -> dict[str, str]:
    """The environment of the launched processes: ours, overridden by the user's except where that decides what is
    started or whether the processes find each other."""
    forced = {name: environment[name] for name in FORCED if name in environment}
    return {**environment, **without_accelerate(os.environ), **forced}


def await_address(name: str) -> None:
    """Wait until the first machine's name has an address.

    Raises:
        ConfigError: it has none after NAME_S.
    """
    began = said = time.monotonic()
    while True:
        try:
            socket.getaddrinfo(name, None)
            return
        except (OSError, UnicodeError) as error:
            waited_s = time.monotonic() - began
            if waited_s > NAME_S:
                raise ConfigError(
                    f"launch.main_address: '{name}' has no address ({error}) after {waited_s:.0f} s; wanted the "
                    "address at which this machine reaches machine 0"
                ) from error
            if said == began:
                said = time.monotonic()
                tell(f"launch.main_address '{name}' has no address yet ({error}); waiting up to {NAME_S:.0f} s for one")
            time.sleep(LOOK_UP_EVERY_S)


def run_or_launch(config: Config, module: str, work: Callable[..., Any], arguments: dict[str, Any]) -> None:
    """Do `work(**arguments)` in this process or, if the config has several processes, start the module with them.

    Args:
        module: calls the same work with read_arguments(sys.argv).
        arguments: values that JSON can hold, and paths.

    Raises:
        SystemExit: the launched processes failed; has their exit code.
    """
    if process_count(config) == 1:
        work(**arguments)
    elif code := launch(config, module, [json.dumps(arguments, default=str)]):
        raise SystemExit(code)


def read_arguments(argv: Sequence[str]) -> dict[str, Any]:
    """The keyword arguments that run_or_launch gave a module; `run` is a path.

    Raises:
        ConfigError: anything but one JSON object with a run.
    """
    try:
        (argument,) = argv[1:]
        arguments = json.loads(argument)
        return {**arguments, "run": Path(arguments["run"])}
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{argv[1:]}: wanted one JSON object of arguments with a 'run' ({error!r})") from error
