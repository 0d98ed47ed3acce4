"""How a run is told to stop, how it starts again, and that only one of it writes into a folder.

`wsss train` starts the launcher in a session of its own and with SIGTERM blocked, which all processes below inherit. So
what is sent to a terminal, a process group or a whole Slurm step waits in each process: for ever in the launchers,
which would kill what they watch, and in a training process until it has imported. Before it trains it just ends; then a
handler sets a flag, on which all ranks agree between two steps (Trainer.agreed_to_stop), and the run ends with a
checkpoint and leaves a mark.
"""

import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from launcher.errors import LAUNCHED, RunError

STOPPED = 128 + signal.SIGTERM  # exit code of a run that was told to stop and did
LOCK, LOCK_WAIT_S = ".lock", 20.0
SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux
libc = ctypes.CDLL(None)


class Stopped(Exception):
    """A run was told to stop and did, with a checkpoint; it is not finished."""


@contextmanager
def noted(*signals: signal.Signals) -> Iterator[list[int]]:
    """Inside, these signals only add themselves to a list. In another thread than the main one nothing changes.

    A process below a launcher that was told to stop ignores them afterwards: who tells all processes and who forwards
    it tell twice, and an end by a signal looks like a failure.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in signals}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if came and os.environ.get(LAUNCHED) else handler)


@contextmanager
def stop_on_sigterm() -> Iterator[Callable[[], bool]]:
    """Inside, SIGTERM only sets a flag; gives the function that tells whether it came."""
    with noted(signal.SIGTERM) as came:
        yield lambda: bool(came)


def end_with_parent(how: signal.Signals) -> None:
    """Get a signal from the kernel when the parent process dies (Linux; elsewhere nothing happens)."""
    if hasattr(libc, "prctl"):
        libc.prctl(SET_PARENT_DEATH_SIGNAL, how)


def begin_under_launcher() -> None:
    """First thing in a process that `launch` started, once it has imported: from now on SIGTERM reaches it, and it gets
    one when the launcher dies, be it by kill -9: nothing must go on that nobody watches.

    As long as it only waits for the others, which it does for minutes where one of them never comes, it dies of it.
    """
    if not os.environ.get(LAUNCHED):
        return
    end_with_parent(signal.SIGTERM)
    if not launcher_lives():
        os.kill(os.getpid(), signal.SIGTERM)  # the launcher died before the kernel was asked
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def launcher_lives() -> bool:
    """Is the parent a launcher, and not who inherits the children of dead ones?"""
    import psutil

    try:
        return any("accelerate" in part for part in psutil.Process(os.getppid()).cmdline())
    except psutil.Error:
        return False


def code_of_stop() -> int:
    """The exit code of a process of a run that was stopped; leaves the mark for `run_and_forward`.

    Launchers take any code but 0 for a failure: one starts everything again, the other prints a traceback.
    """
    if mark := os.environ.get(LAUNCHED):
        Path(mark).touch()
        return 0
    return 0 if "TORCHELASTIC_RUN_ID" in os.environ else STOPPED


def run_and_forward(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a launch command to its end. SIGTERM and Ctrl-C ask the processes below the launcher to stop; a second
    Ctrl-C kills them.

    Returns:
        The launcher's exit code; STOPPED if the run was told to stop, on this machine or another, and did, or here and
        ended before it trained.
    """
    with tempfile.TemporaryDirectory() as folder, noted(signal.SIGTERM, signal.SIGINT) as came:
        mark, told = Path(folder) / "stopped", set[int]()
        process, announced = start(argv, {**environment, LAUNCHED: str(mark)}), False
        while (code := wait(process)) is None:
            if came and not announced:
                announced = True
                print("told to stop; waiting for the step to end. Ctrl-C kills the run at once", file=sys.stderr)
            if came:
                terminate_children(process, told)
            if len(came) > 1 and came[-1] == signal.SIGINT:
                kill_all(process)
        if code and (errors := mark.with_suffix(".errors")).exists():
            if "--multi_gpu" in argv or "--use_deepspeed" in argv:  # those launchers have said much since
                print(f"\nwhat ended it: {errors.read_text()}", end="", file=sys.stderr)
        elif mark.exists() or (came and code):
            return STOPPED
        return code


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


def terminate_children(process: subprocess.Popen, told: set[int]) -> None:
    """SIGTERM to each child of a launcher once, also to those that it starts later; `told` are their ids."""
    import psutil

    try:
        for child in psutil.Process(process.pid).children():
            if child.pid not in told:
                told.add(child.pid)
                child.terminate()
    except psutil.NoSuchProcess:
        return


def kill_all(process: subprocess.Popen) -> None:
    import psutil

    try:
        launcher = psutil.Process(process.pid)
        for one in [*launcher.children(recursive=True), launcher]:
            one.kill()
    except psutil.NoSuchProcess:
        return


def join_group(backend: str, timeout: timedelta) -> None:
    """Join the processes that elastic launch started, before Accelerate does it.

    The launcher's store outlives a restart, and stale keys in it make new processes connect to dead ones: so each
    attempt has keys of its own. Accelerate uses the group that it finds.
    """
    import torch.distributed as dist

    if dist.is_initialized() or "TORCHELASTIC_RESTART_COUNT" not in os.environ:
        return
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    is_master = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store = dist.TCPStore(host, port, world_size, is_master=is_master, timeout=timeout, multi_tenant=True)
    attempt = dist.PrefixStore(f"attempt_{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    dist.init_process_group(backend, store=attempt, rank=rank, world_size=world_size, timeout=timeout)


@contextmanager
def group_left() -> Iterator[None]:
    """Leave the process group at the end, however it ends."""
    import torch.distributed as dist

    try:
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def only_writer(run: Path, wait_s: float = LOCK_WAIT_S) -> Iterator[None]:
    """Hold a run's folder against a second training; the kernel lets go of it when this process ends, however.

    Raises:
        RunError: another process still holds it after wait_s.
    """
    run.mkdir(parents=True, exist_ok=True)
    with (run / LOCK).open("a+") as file:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    file.seek(0)
                    raise RunError(
                        f"{run}: is being trained by {file.read().strip() or 'another process'}; end that first, or "
                        "give this run another name"
                    ) from error
                time.sleep(0.2)
        try:
            file.seek(0)
            file.truncate()
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        except OSError as error:
            raise RunError(f"{run / LOCK}: cannot be written ({error}); make room on this disk") from error
        yield
