"""Items through a pool of worker processes, in order; workers end with what started them."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import lru_cache
from typing import TypeVar

from launcher.errors import RunError
from launcher.processes.signals import end_with_parent
from launcher.processes.surroundings import count_cores
from launcher.progress import Progress
from launcher.streams import outlive_output
from shards.folder import ShardFolder
from shards.remote import Place
from shards.schema import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_pool(
    work: Callable[[Item], Result], items: Sequence[Item], *, workers: int | None, label: str
) -> Iterator[Result]:
    """Do `work` on every item in worker processes, with progress; results in the order of the items.

    All items are tried before an error is raised, so that one bad shard does not hold up the others.

    Args:
        workers: processes, of which those that have no item are not started; None = one per core.

    Raises:
        DataError: the failed items with their errors.
    """
    workers = min(workers or count_cores(), max(len(items), 1))
    results: dict[int, Result] = {}
    errors: list[str] = []
    with Progress(len(items), label, "shard") as progress:
        for number, outcome in try_each(work, items, workers):
            if isinstance(outcome, (DataError, RunError, ValueError, OSError, BrokenProcessPool)):
                errors.append(f"{items[number]}: {outcome}")
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                results[number] = outcome
            progress.advance()
    if errors:
        raise DataError(f"{label}: {len(errors)} of {len(items)} shards failed:\n  " + "\n  ".join(errors))
    return iter([results[number] for number in range(len(items))])


def try_each(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Iterable[tuple[int, Result | BaseException]]:
    """(number, result or exception) of each item as it comes."""
    if workers == 1 or len(items) <= 1:
        for number, item in enumerate(items):
            try:
                yield number, work(item)
            except Exception as error:
                yield number, error
        return
    with spawned_pool(workers) as pool:
        futures = {pool.submit(work, item): number for number, item in enumerate(items)}
        for future in as_completed(futures):
            yield futures[future], future.exception() or future.result()


@contextmanager
def spawned_pool(workers: int) -> Iterator[Executor]:
    """Worker processes. What waits for one is dropped when the block fails, as by Ctrl-C."""
    # Spawned, since a forked worker would inherit the parent's threads and CUDA state.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=begin_worker)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def begin_worker() -> None:
    """First thing in each worker: it ends with its parent, and torch opens no threads, since the pool is the
    parallelism."""
    end_with_parent(signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:  # it was killed before the kernel was asked
        os._exit(1)
    outlive_output()
    import torch

    torch.set_num_threads(1)


@lru_cache(maxsize=4)
def open_shards(folder: Place) -> ShardFolder:
    """Image shards, opened once per worker process."""
    return ShardFolder(folder)
