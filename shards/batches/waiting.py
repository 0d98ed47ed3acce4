"""Waiting for batches, with a limit and with an error if none can come.

A loader process hands its batches over through shared memory (/dev/shm) and sockets in TMPDIR. If one of these does not
work, torch prints a traceback in that process and drops the batch, and the trainer would wait forever.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from multiprocessing.queues import Queue
from typing import Any

import torch
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader, Dataset

from shards.batches.processes import METHOD, begin, start_server, starting
from shards.schema import DataError

BATCH_S = 480.0  # a loader process that gives nothing for so long hangs; stores and caches are given up earlier
ALONE_S = 3600.0  # the same if no other process waits for this one: a large shard may arrive slowly
LOOK_EVERY_S = 5.0  # how often to check that a loader process still lives
waiting_since: float | None = None  # time.monotonic() at which this process began to wait for a batch


class PatientLoader(DataLoader):
    """A DataLoader that does not wait for its processes without limit; takes the same arguments.

    Raises:
        DataError: no loader process can be started; or, while iterating, one died, could not hand over its batch, or
            gave none within the limit.
    """

    def __init__(self, dataset: Dataset, *, num_workers: int, **options: Any) -> None:
        self.limit_s = BATCH_S if torch.distributed.is_initialized() else ALONE_S
        expect_processes(num_workers)
        if num_workers:
            options |= {"timeout": LOOK_EVERY_S, "multiprocessing_context": METHOD}
            options["worker_init_fn"] = partial(begin_worker, dict(os.environ))
        super().__init__(dataset, num_workers=num_workers, **options)

    def __iter__(self) -> Any:
        try:
            with starting():
                batches = super().__iter__()
        except OSError as error:
            raise cannot_start(error) from error
        return watch(batches, self.limit_s)


def expect_processes(workers: int) -> None:
    """Start the server that forks loader processes, unless there will be none. It imports while its caller does other
    work, so call this before loading a network.

    Raises:
        DataError: this machine does not allow it.
    """
    try:
        if workers:
            start_server()
    except OSError as error:
        raise cannot_start(error) from error


def cannot_start(error: OSError) -> DataError:
    return DataError(f"no loader process can be started ({error}); {remedies()}")


def watch(batches: Iterator[Any], limit_s: float = ALONE_S) -> Iterator[Any]:
    """The same batches; torch's errors about its processes become errors for the user."""
    global waiting_since
    while True:
        waiting_since = time.monotonic()
        try:
            batch = wait_for_next(batches, limit_s)
        except RuntimeError as error:
            if said := explain_loader(str(error)):
                raise DataError(said) from error
            raise
        finally:
            waiting_since = None
        if batch is None:
            return
        yield batch


def wait_for_next(batches: Iterator[Any], limit_s: float) -> Any:
    """The next batch; None after the last one. Whenever torch gives up waiting, it checks for dead processes."""
    while True:
        try:
            return next(batches, None)
        except RuntimeError as error:
            if not str(error).startswith("DataLoader timed out"):
                raise
            if waited_s() >= limit_s:
                raise RuntimeError(f"DataLoader timed out after {limit_s:g} seconds") from None


def waited_s() -> float:
    """How long this process has been waiting for a batch; 0 while it does something else."""
    return 0.0 if waiting_since is None else time.monotonic() - waiting_since


def explain_loader(message: str) -> str | None:
    """An error with advice for torch's message about a loader process; None if it is about something else."""
    if not message.startswith(("DataLoader ", "Too many open files")):
        return None
    first = message.splitlines()[0].rstrip(".")
    return f"no batch came from a loader process: {first}; {remedies()}"


def remedies() -> str:
    larger = ""
    with suppress(OSError):  # a Mac has none
        free_mb = shutil.disk_usage("/dev/shm").free / 1e6
        larger = f"a larger /dev/shm ({free_mb:.1f} MB are free there; containers: --shm-size), "
    return (
        f"give it more memory if it was killed, {larger}a TMPDIR that is short and can be written "
        f"({tempfile.gettempdir()}), more open files (ulimit -n); or let the training process read the "
        "data: data.workers=0"
    )


def begin_worker(environment: Mapping[str, str], worker: int) -> None:
    """The first call in each loader process.

    Args:
        environment: of the process that it reads for.
        worker: its number.
    """
    report_failed_hand_over()
    begin(environment)


def report_failed_hand_over() -> None:
    """In a loader process: an error that prevents a batch from being handed over is sent to the trainer instead."""

    def tell(queue: Any, error: Exception, item: Any) -> None:
        said = f"a loader process could not hand over its batch ({type(error).__name__}: {error}); {remedies()}"
        try:
            raise DataError(said) from None
        except DataError:
            queue.put((item[0], ExceptionWrapper(where="in a loader process")))

    Queue._on_queue_feeder_error = tell  # type: ignore[attr-defined]  # Python's hook for this
