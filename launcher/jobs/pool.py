"""Items through worker processes, in order: those of this machine, or a Dask cluster's."""

import multiprocessing
import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeVar

from launcher.errors import RunError
from launcher.jobs.dask_workers import dask_crew, scheduler
from launcher.processes.signals import end_with_parent
from launcher.processes.surroundings import count_cores
from launcher.progress import Progress
from launcher.streams import outlive_output
from shards.folder import ShardFolder
from shards.remote import Place
from shards.schema import DataError, DiskError

Item = TypeVar("Item")
Result = TypeVar("Result")

OF_AN_ITEM = (DataError, RunError, ValueError, OSError, BrokenProcessPool)
# Reasons of one job that are told: where all masks are of another kind, every shard says so.
MOST_TOLD, KINDS_TOLD, OF_A_KIND = 10, 4, 2
LOOK_EVERY_S = 30.0  # whether a Dask cluster without a worker has one


def run_pool(
    work: Callable[[Item], Result], items: Sequence[Item], *, workers: int | None, label: str
) -> Iterator[Result]:
    """Do `work` on every item in worker processes, with progress; results in the order of the items, as they come.

    All items are tried before an error is raised, so that one bad shard does not hold up the others. But an error of
    the disk ends it at once, since the others would fail, too.

    Args:
        workers: processes, of which those that have no item are not started; None = one per core. A Dask cluster, where
            there is one, has its own number.

    Raises:
        DataError: the failed items with their errors.
        DiskError: what is written finds no room.
        RunError: a Dask cluster that cannot do it.
    """
    errors: dict[int, str] = {}
    waiting: dict[int, Result] = {}
    following = 0
    with Progress(len(items), label, "shard") as progress:
        for number, outcome in try_each(work, items, workers or count_cores()):
            progress.advance()
            if isinstance(outcome, DiskError):
                raise outcome
            if isinstance(outcome, OF_AN_ITEM):
                errors[number] = f"{items[number]}: {outcome}"
            elif isinstance(outcome, BaseException):
                raise outcome
            elif not errors:  # nothing that is behind an error is given
                waiting[number] = outcome
            while following in waiting:
                yield waiting.pop(following)
                following += 1
    if errors:
        listed = tell([errors[number] for number in sorted(errors)])
        raise DataError(f"{label}: {len(errors)} of {len(items)} shards failed:\n{listed}")


def tell(reasons: Sequence[str]) -> str:
    """Why shards failed, a line each. If they would fill more than a screen: a few of each kind (reasons that differ
    only in names and numbers), and how many more there are."""
    if len(reasons) <= MOST_TOLD:
        return "\n".join(f"  {reason}" for reason in reasons)
    kinds: dict[str, list[str]] = {}
    for reason in reasons:
        kinds.setdefault(re.sub(r"'[^']*'|\S*[\d/]\S*", "", reason), []).append(reason)
    lines, told = [], [*kinds.values()][:KINDS_TOLD]
    for of_kind in told:
        lines += [f"  {reason}" for reason in of_kind[:OF_A_KIND]]
        if (more := len(of_kind) - OF_A_KIND) > 0:
            lines.append(f"  and {more} more like these")
    others = len(reasons) - sum(map(len, told))
    return "\n".join([*lines, *([f"  and {others} of other kinds"] if others else [])])


def try_each(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    *,
    here: Callable[[Item], Result] | None = None,
    devices: bool = False,
) -> Iterator[tuple[int, Result | BaseException]]:
    """(number, result or exception) of each item as it comes.

    Args:
        here: what this process does where it works alone; None = the same.
        devices: whether each local process gets a GPU of its own, and all threads of its share of the cores.
    """
    if not items:
        return
    if scheduler():
        with dask_crew(scheduler()) as crew:
            errand = crew.there(work)
            yield from as_they_come(crew.executor, errand, items, crew.outcome, crew.say_if_alone)
    elif workers == 1 or len(items) == 1:
        for number, item in enumerate(items):
            try:
                yield number, (here or work)(item)
            except Exception as error:
                yield number, error
    else:
        with spawned_pool(min(workers, len(items)), devices=devices) as pool:
            yield from as_they_come(pool, work, items)


def local_outcome(future: Future, item: object) -> Any:
    return future.exception() or future.result()


def as_they_come(
    executor: Executor,
    work: Callable[[Item], Any],
    items: Sequence[Item],
    outcome_of: Callable[[Future, object], Any] = local_outcome,
    idle: Callable[[], None] = lambda: None,
) -> Iterator[tuple[int, Any]]:
    """(number, outcome) of each item. A future is dropped as it completes: a Dask cluster that lost the worker which
    holds a finished result would else compute it again."""
    futures = {executor.submit(work, item): number for number, item in enumerate(items)}
    try:
        while futures:
            done, _ = wait(futures, timeout=LOOK_EVERY_S, return_when=FIRST_COMPLETED)
            if not done:
                idle()
            while done:
                future = done.pop()
                number = futures.pop(future)
                yield number, outcome_of(future, items[number])
    finally:
        for future in futures:
            future.cancel()


@contextmanager
def spawned_pool(workers: int, *, devices: bool = False) -> Iterator[Executor]:
    """Worker processes. What waits for one is dropped when the block fails, as by Ctrl-C.

    Args:
        devices: see try_each.
    """
    # Spawned, since a forked worker would inherit the parent's threads and CUDA state.
    context = multiprocessing.get_context("spawn")
    numbers, threads = (context.Value("i", 0), max(1, count_cores() // workers)) if devices else (None, 1)
    pool = SpawningPool(workers, mp_context=context, initializer=begin_worker, initargs=(threads, numbers))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


class SpawningPool(ProcessPoolExecutor):
    """Its workers are started when there is work, and hear of Ctrl-C once they have imported, see begin_worker."""

    def submit(self, work: Callable, /, *arguments: Any, **options: Any) -> Future:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(work, *arguments, **options)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin_worker(threads: int, numbers: Any) -> None:
    """First thing in each worker: it ends with its parent, and by Ctrl-C at once and without a traceback, since its
    parent says what there is to say; torch opens no threads but its share, since the pool is the parallelism.

    Args:
        numbers: a counter that gives each worker its number, which chooses its GPU; None = none needs one.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    end_with_parent(signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:  # it was killed before the kernel was asked
        os._exit(1)
    outlive_output()
    import torch

    torch.set_num_threads(threads)
    if numbers is not None:
        with numbers.get_lock():
            number, numbers.value = numbers.value, numbers.value + 1
        if torch.cuda.is_available():
            torch.cuda.set_device(number % torch.cuda.device_count())


def may_start_processes() -> bool:
    """Whether this process may have some of its own: a Dask worker below a nanny may not."""
    return not multiprocessing.current_process().daemon


@lru_cache(maxsize=4)
def open_shards(folder: Place, fingerprint: str) -> ShardFolder:
    """Image shards, opened once per worker process, as long as the folder's content stays the same.

    Raises:
        DataError: it holds others now.
    """
    shards = ShardFolder(folder)
    if shards.index.fingerprint != fingerprint:
        raise DataError(
            f"{folder}: holds other images (fingerprint {shards.index.fingerprint}) than on the machine that started "
            f"the job ({fingerprint}); wait until all machines see the same files, and start it again"
        )
    return shards
