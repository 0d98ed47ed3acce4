"""How a run is told to stop, how it starts again, and that only one of it writes into a folder.

SIGTERM to `wsss train`, to `accelerate launch` or to a training process ends in a checkpoint at the next step: the
handler only sets a flag, on which all ranks agree between two steps (Trainer.agreed_to_stop).
"""

import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from launcher.errors import RunError

STOPPED = 128 + signal.SIGTERM  # exit code of a run that was told to stop and did
LAUNCHED = "WSSS_LAUNCHED"  # set for processes whose launcher is ours: they end with it
LOCK, LOCK_WAIT_S = ".lock", 20.0
SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux


class Stopped(Exception):
    """A run was told to stop and did, with a checkpoint; it is not finished."""


@contextmanager
def stop_on_sigterm() -> Iterator[Callable[[], bool]]:
    """Inside, SIGTERM only sets a flag; gives the function that tells whether it came. Other threads get no signals."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


def end_with_launcher() -> None:
    """Get SIGTERM when the launcher dies, be it by kill -9: nothing must go on that nobody watches."""
    if os.environ.get(LAUNCHED):
        end_with_parent(signal.SIGTERM)


def end_with_parent(how: signal.Signals) -> None:
    """Get a signal from the kernel when the parent process dies (Linux; elsewhere nothing happens)."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(SET_PARENT_DEATH_SIGNAL, how)


def run_and_forward(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a launch command to its end; SIGTERM goes on to the training processes, past the launcher.

    Accelerate's launcher of one process dies of SIGTERM and leaves its process alone; that of several gives it on
    but ends with an error. So the training processes, which are its children, are told themselves.

    Returns:
        The launcher's exit code; STOPPED after a SIGTERM that it did not take ill.
    """
    process = subprocess.Popen(argv, env={**environment, LAUNCHED: "1"})
    with stop_on_sigterm() as asked:
        told = False
        while True:
            try:
                code = process.wait(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                if asked() and not told:
                    told = True
                    terminate_children(process)
    return STOPPED if told and code == 0 else code


def terminate_children(process: subprocess.Popen) -> None:
    """SIGTERM to the children of a launcher, or to itself while it has none."""
    import psutil

    try:
        children = psutil.Process(process.pid).children()
        for child in children:
            child.terminate()
    except psutil.NoSuchProcess:
        return
    if not children:
        process.terminate()


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
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
