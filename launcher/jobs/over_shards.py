"""The engine of all jobs: image shards -> output shards of the same names, one at a time, by whatever processes are.

In this process, in processes of this machine, or in a Dask cluster's; each takes the next missing shard when it has
finished one, so a slow one holds up no other. Nothing waits for anything but the work.
"""

import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

from launcher.errors import ConfigError, ImageError, RunError, naming, without_traceback
from launcher.jobs import output
from launcher.jobs.pool import open_shards, try_each
from launcher.jobs.shares import Share
from launcher.progress import Progress
from shards.digests import note_written, write_digests
from shards.folder import ShardFolder
from shards.schema import DataError
from shards.write import write_tar

if TYPE_CHECKING:
    from launcher.run.folder import Run
    from shards.remote import Place

Members = dict[str, bytes]  # extension -> bytes
SamplesOf = Callable[
    [str], Generator[tuple[int, Members]]
]  # name of an image shard -> (number, members) of its samples


class ToWrite(Protocol):
    """One output shard: OUT/NAME, of so many images."""

    @property
    def out(self) -> Path: ...

    @property
    def name(self) -> str: ...

    @property
    def num_images(self) -> int: ...


Task = TypeVar("Task", bound=ToWrite)


@dataclass(frozen=True)
class Output(Generic[Task]):
    """An output folder, what it is made of (see output.open_output), and its shards.

    Attributes:
        likely_bytes: of a shard, where that can be told before there is one.
    """

    folder: Path
    made_of: dict[str, Any]
    tasks: Sequence[Task]
    likely_bytes: int = 0


def write_outputs(
    outputs: Sequence[Output[Task]],
    work: Callable[[Task], None],
    *,
    share: Share,
    workers: int,
    label: str,
    overwrite: bool = False,
    here: Callable[[Callable[[], None], Task], None] | None = None,
    devices: bool = False,
    remedy: str = "mend what is named, and start it again",
) -> None:
    """Write what is missing of these folders. Safe to kill and to run again: finished shards stay, the others are done.

    A shard with an image that fails is left out, all others are written first. What is no image's fault, such as a full
    disk, ends the job at once.

    Args:
        work: writes one shard, unless it is there.
        share: what of it is this process's.
        workers: processes of this machine; 1 = this one.
        here: the same, for this process, which calls the function that it is given after each image.
        overwrite: remove what was made before.
        devices: see pool.try_each.
        remedy: for shards that fail.

    Raises:
        RunError: an output folder was made of something else, images that failed, each with its name and reason, a disk
            that has no room for what is missing, or shards that are missing at the end.
    """
    if overwrite:
        share.refuse_overwrite()
    if share.opens:
        for one in outputs:
            output.open_output(one.folder, one.made_of, overwrite=overwrite)
        for one in outputs:
            names = [task.name for task in one.tasks]
            output.set_changed_aside(one.folder, share.take(names) if share.ranks is None else names)
    share.wait()
    tasks: list[Task] = []
    room = output.Room(share.count)
    for one in outputs:
        missing = set(output.list_missing(one.folder, [task.name for task in one.tasks]))
        tasks += [task for task in share.take(one.tasks) if task.name in missing]
        room.add(one.folder, [task.name for task in one.tasks], one.likely_bytes)
    share.wait()  # nobody writes before everybody has looked
    room.check()
    failed: dict[int, str] = {}
    try:
        with Progress(sum(task.num_images for task in tasks), label, "image", enabled=share.speaks) as progress:
            seen = 0  # images of a shard that this process is at

            def advance() -> None:
                nonlocal seen
                seen += 1
                progress.advance()

            alone = None if here is None else partial(here, advance)
            for number, outcome in try_each(work, tasks, workers, here=alone, devices=devices):
                task = tasks[number]
                if task.num_images > seen:
                    progress.advance(task.num_images - seen)
                seen = 0
                if isinstance(outcome, ImageError):
                    failed[number] = without_traceback(str(outcome))
                elif isinstance(outcome, BrokenProcessPool):
                    raise RunError(
                        f"{label}: a worker process died, most likely for want of memory: lower the number of workers; "
                        "finished shards stay, start it again"
                    )
                elif isinstance(outcome, BaseException):
                    raise outcome
                else:
                    room.finish(task.out, task.name)
    finally:
        for one in outputs:
            output.sweep(one.folder)
    tell_failures(
        share.gather([failed[number] for number in sorted(failed)]),
        sum(len(one.tasks) for one in outputs),
        label,
        remedy,
    )
    share.wait()
    if share.opens:
        for one in outputs:
            names = [task.name for task in one.tasks]
            if share.count == 1 or share.ranks is not None:
                output.require_all(one.folder, names)
            if not output.list_missing(one.folder, names):  # of several tasks of srun the last one finds all
                write_digests(one.folder, names)


def tell_failures(failed: Sequence[str], of_all: int, label: str, remedy: str) -> None:
    """Raise RunError if there are some."""
    if failed:
        told = "\n  ".join([f"{label}: {len(failed)} of {of_all} shards failed, all others are written:", *failed])
        raise RunError(f"{told}\n{remedy}")


def write_shard(
    path: Path,
    samples: Generator[tuple[int, Members]],
    shards: ShardFolder,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Write the output shard of an image shard, unless another process has meanwhile."""
    with closing(data_errors_named(samples)) as named:
        if not path.is_file():
            write_tar(path, name_by_key(named, shards, advance))
            note_written(path)


def data_errors_named(samples: Generator[tuple[int, Members]]) -> Generator[tuple[int, Members]]:
    """The samples; a DataError of their making, which says where, as an ImageError, unlike one of the disk that they
    are written to."""
    with closing(samples):
        try:
            yield from samples
        except DataError as error:
            raise ImageError(str(error)) from error


def name_by_key(
    samples: Iterable[tuple[int, Members]], shards: ShardFolder, advance: Callable[[], None]
) -> Iterator[tuple[str, Members]]:
    for number, members in samples:
        yield shards.keys[number], members
        advance()


class NetworkTask(NamedTuple):
    """One shard of a job of a network."""

    out: Path
    name: str
    num_images: int

    def __str__(self) -> str:
        return str(self.out / self.name)


@dataclass(frozen=True, kw_only=True)
class NetworkJob(ABC):
    """A job that a network does on image shards: what a process needs to know to do a part of it. It is sent to others.

    Attributes:
        out: the output folder, a path that means the same everywhere, as all of a job's.
        shards: folder of the image shards, and
        fingerprint: of what it holds.
        weights: tells the network from another one at the same place.
    """

    out: Path
    shards: "Place"
    fingerprint: str
    weights: str

    @abstractmethod
    def opened(self) -> AbstractContextManager[SamplesOf]:
        """Load the network on this process's device; inside the block it can be asked for the samples of shards."""


def write_next_to(
    job: NetworkJob,
    images: ShardFolder,
    made_of: dict[str, Any],
    *,
    opened: Callable[[], AbstractContextManager[SamplesOf]],
    share: Share,
    processes: int,
    label: str,
    overwrite: bool = False,
) -> None:
    """Write OUT/NAME for every image shard NAME, see write_outputs.

    Args:
        opened: the job, opened in this process, where the network is loaded already.
        processes: of this machine, each with its own network, and its own GPU where there are some.
    """
    tasks = [NetworkTask(job.out, shard.name, len(shard.keys)) for shard in images.index.shards]
    with ExitStack() as stack:
        samples_of: list[SamplesOf] = []

        def here(advance: Callable[[], None], task: NetworkTask) -> None:
            if not samples_of:
                samples_of.append(stack.enter_context(opened()))
            write_shard(task.out / task.name, samples_of[0](task.name), images, advance)

        write_outputs(
            [Output(job.out, made_of, tasks)],
            WriteThere(job),
            share=share,
            workers=processes,
            label=label,
            overwrite=overwrite,
            here=here,
            devices=True,
            remedy="mend these images, or leave them out, and write the image shards again",
        )


class WriteThere:
    """Writes a shard in a worker process, which keeps the network that it has loaded for the next one. It is sent with
    its job as bytes, which tell jobs apart, whatever their settings are made of."""

    def __init__(self, job: NetworkJob | None, pickled: bytes = b"") -> None:
        self.job, self.pickled = job, pickled

    def __reduce__(self) -> tuple[Any, ...]:
        return WriteThere, (None, self.pickled or pickle.dumps(self.job))

    def __call__(self, task: NetworkTask) -> None:
        job, samples_of = KEPT.open(self.pickled)
        write_shard(task.out / task.name, samples_of(task.name), open_shards(job.shards, job.fingerprint))


class Kept:
    """The job that this worker process has open: one, for its network takes the device's memory."""

    def __init__(self) -> None:
        self.key, self.stack = b"", ExitStack()
        self.job: Any = None
        self.samples_of: Any = None

    def open(self, key: bytes) -> tuple[NetworkJob, SamplesOf]:
        if key != self.key:
            self.stack.close()
            self.key, self.job, self.samples_of = b"", None, None
            self.job = pickle.loads(key)
            self.samples_of = self.stack.enter_context(self.job.opened())
            self.key = key
        return self.job, self.samples_of


KEPT = Kept()

Items = TypeVar("Items", bound=Sized)
Result = TypeVar("Result")


def try_together(work: Callable[[Items], Result], items: Items, where: Sequence[str]) -> Result:
    """`work` on a batch of images. Where it fails they are tried one at a time, to find and name the one that does.

    Args:
        items: anything that can be sliced, such as a tensor.
        where: the name of each image.

    Raises:
        ImageError: an image failed, or all of them together.
    """
    try:
        return work(items)
    except (ConfigError, RunError):
        raise
    except Exception as error:
        if len(where) > 1:
            for number, name in enumerate(where):
                with naming(name):
                    work(items[number : number + 1])  # type: ignore[index]
        together = f"{where[0]} and {len(where) - 1} more, together" if len(where) > 1 else where[0]
        with naming(together):
            raise error


def open_images(run: "Run", folder: "Place") -> ShardFolder:
    """Image shards for a trained run; raises RunError if they have other classes than it was trained on."""
    shards = ShardFolder(folder)
    if shards.index.classes != run.class_set.classes:
        raise RunError(
            f"{folder} has the classes {shards.index.classes}; {run.folder} was trained on {run.class_set.classes}"
        )
    return shards
