"""Start `accelerate launch` with the arguments that fit a config, pass signals on, and leave nothing running."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.config.sections import Config
from launcher.errors import LAUNCHED, ConfigError
from launcher.processes.accelerator import process_count, uses_cpu
from launcher.processes.signals import STOPPED, end_with_parent, record_signals
from launcher.processes.surroundings import count_cores, find_ours, without_accelerate
from launcher.processes.zero_settings import read_zero

ACCELERATE = Path(__file__).with_name("accelerate.yaml")
FORCED = ("ACCELERATE_USE_CPU", "PYTHONSAFEPATH", "PYTHONPATH")
NAME_S = 300.0  # that the name of the first machine may take to get an address: pods start at different times
STOP_S = 1800.0  # that a run may take to stop: longer than a group waits for one of it, and than most evaluations
ALONE_S = 30.0  # that a launcher whose children have ended may take to end
SAY_EVERY_S, LOOK_UP_EVERY_S = 60.0, 2.0


def run_and_forward(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a launch command to its end. SIGTERM, Ctrl-C and the end of the terminal ask the processes below the launcher
    to stop; a second Ctrl-C kills them, and so does time, see Stopping.

    Returns:
        The launcher's exit code; STOPPED if the run was asked to stop, on this machine or another, and did, or here and
        ended before it trained.
    """
    with tempfile.TemporaryDirectory() as folder, record_signals(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as came:
        mark = Path(folder) / "stopped"
        process, stopping = start(argv, {**environment, LAUNCHED: str(mark)}), None
        while (code := wait(process)) is None:
            if came:
                stopping = stopping or Stopping(process)
                stopping.go_on(at_once=len(came) > 1 and came[-1] == signal.SIGINT)
        if code and (errors := mark.with_suffix(".errors")).exists() and not mark.exists():
            if "--multi_gpu" in argv or "--use_deepspeed" in argv:  # those launchers have said much since
                print(f"\nwhat ended it: {errors.read_text()}", end="", file=sys.stderr)
        elif mark.exists() or (came and code):
            return STOPPED
        return code


class Stopping:
    """The end of a launcher that was asked to stop: its children are told; where there are none, or they do not end,
    it is killed with all below."""

    def __init__(self, process: subprocess.Popen) -> None:
        self.process, self.asked = process, set[int]()
        self.began = self.alone_since = self.said = time.monotonic()

    def go_on(self, *, at_once: bool) -> None:
        """To be called again and again until the launcher has ended."""
        first, now = not self.asked, time.monotonic()
        if terminate_children(self.process, self.asked):
            self.alone_since = now
            if first:
                say("asked to stop; waiting for the step to end. Ctrl-C kills the run at once")
        elif first:
            say("asked to stop; no process trains yet, so there is nothing to wait for")
            at_once = True
        if now - self.said > SAY_EVERY_S:
            self.said = now
            minutes = (now - self.began) / 60
            say(f"asked to stop {minutes:.0f} min ago; the step, its save or an evaluation is still running")
        if now - self.began > STOP_S:
            say(f"asked to stop {STOP_S / 60:.0f} min ago, and still there: killed; the last checkpoint stands")
        if at_once or now - self.began > STOP_S or now - self.alone_since > ALONE_S:
            kill_all(self.process)


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def start(argv: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen:
    """A launcher that ends with us, with SIGTERM blocked in it and all below."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        return subprocess.Popen(
            argv, env=environment, start_new_session=True, preexec_fn=lambda: end_with_parent(signal.SIGKILL)
        )
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def wait(process: subprocess.Popen) -> int | None:
    try:
        return process.wait(timeout=0.2)
    except subprocess.TimeoutExpired:
        return None


def terminate_children(process: subprocess.Popen, asked: set[int]) -> bool:
    """SIGTERM to each child of a launcher once, also to those that it starts later; `asked` are their ids.

    Returns:
        Whether it has children.
    """
    import psutil

    try:
        children = psutil.Process(process.pid).children()
        for child in children:
            if child.pid not in asked:
                asked.add(child.pid)
                child.terminate()
        return bool(children)
    except psutil.NoSuchProcess:
        return True


def kill_all(process: subprocess.Popen) -> None:
    import psutil

    try:
        launcher = psutil.Process(process.pid)
        for one in [*launcher.children(recursive=True), launcher]:
            one.kill()
    except psutil.NoSuchProcess:
        return


def launch_command(config: Config, module: str, arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The `accelerate launch` argument list that starts a module as configured, and the environment it needs."""
    processes, cpu = process_count(config), uses_cpu(config)
    zero, where = read_zero(config), config.launch
    argv = [sys.executable, "-m", "accelerate.commands.launch", "--quiet"]  # of one process: no traceback of its own
    argv += ["--config_file", str(ACCELERATE)]  # else the user's own, made for another project, decides
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
            # with it Accelerate runs DDP where DeepSpeed was asked for, without it two trainings where DDP was
            "ACCELERATE_USE_CPU": "true" if zero is None else "false",
            "OMP_NUM_THREADS": str(max(1, count_cores() * where.machines // processes)),
            # glibc returns every large buffer to the kernel and asks for it again: half of a CPU step's time
            "MALLOC_MMAP_MAX_": "0",
            "MALLOC_TRIM_THRESHOLD_": "100000000000",
        }
    return argv, environment


def launch(config: Config, module: str, arguments: Sequence[str], *, verbose: bool = False) -> int:
    """Say what is started and run it; returns its exit code. A SIGTERM goes on to the processes that train.

    Args:
        verbose: print the launch command.
    """
    print(show_launch(config, module, arguments) if verbose else describe_launch(config), flush=True)
    argv, environment = launch_command(config, module, arguments)
    if config.launch.machines > 1:
        await_address(str(config.launch.main_address))
        say(
            f"machine {config.launch.machine_rank} of {config.launch.machines}: waiting for the others at "
            f"{config.launch.main_address}:{config.launch.port}, half an hour at most; SIGTERM or Ctrl-C ends it"
        )
    return run_and_forward(argv, effective(environment))


def describe_launch(config: Config) -> str:
    """How many processes on what, in a few words."""
    count, machines = process_count(config), config.launch.machines
    where = "CPU" if uses_cpu(config) else "GPU"
    places = f", machine {config.launch.machine_rank} of {machines}" if machines > 1 else ""
    return f"{config.name}: {count} process{'es' if count > 1 else ''} on {where}{'s' if count > 1 else ''}{places}"


def show_launch(config: Config, module: str, arguments: Sequence[str]) -> str:
    """The launch command as a line that a shell takes, with the environment it needs."""
    argv, environment = launch_command(config, module, arguments)
    in_force = effective(environment)
    return shlex.join(["env", *(f"{name}={in_force[name]}" for name in environment), *argv])


def effective(environment: dict[str, str]) -> dict[str, str]:
    """The environment of what is launched: ours, then the user's, but for what must not be changed."""
    return {**environment, **without_accelerate(os.environ), **keep_forced(environment)}


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
                    f"launch.main_address: '{name}' has no address ({error}) after {waited_s:.0f} s; wanted that of "
                    "machine 0 as this machine reaches it"
                ) from error
            if said == began:
                said = time.monotonic()
                say(f"launch.main_address '{name}' has no address yet ({error}); waiting for one for {NAME_S:.0f} s")
            time.sleep(LOOK_UP_EVERY_S)


def run_or_launch(config: Config, module: str, work: Callable[..., Any], arguments: dict[str, Any]) -> None:
    """Do `work(**arguments)` in this process, or start the module with them where the config has several processes.

    Args:
        module: hands read_arguments(sys.argv) to the same work.
        arguments: what JSON can say, and paths.

    Raises:
        SystemExit: the launched processes failed; with their code.
    """
    if process_count(config) == 1:
        work(**arguments)
    elif code := launch(config, module, [json.dumps(arguments, default=str)]):
        raise SystemExit(code)


def read_arguments(argv: Sequence[str]) -> dict[str, Any]:
    """The keyword arguments that run_or_launch gave a module; `run` is a path.

    Raises:
        ConfigError: something else than one JSON object with a run.
    """
    try:
        (argument,) = argv[1:]
        arguments = json.loads(argument)
        return {**arguments, "run": Path(arguments["run"])}
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{argv[1:]}: wanted one JSON object of arguments with a 'run' ({error!r})") from error


def keep_forced(environment: dict[str, str]) -> dict[str, str]:
    """What the user's own environment must not change: it decides what is started, and whether the processes find each
    other."""
    return {name: environment[name] for name in FORCED if name in environment}
