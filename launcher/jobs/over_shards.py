"""The engine of all jobs: image shards -> output shards of the same names, one at a time, with whatever processes there
are.

The work is done in this process, in other processes of this machine, or by a Dask cluster. Each process takes the next
missing shard when it has finished one, so a slow shard does not hold up the others."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from launcher.errors import ImageError, RunError, without_traceback
from launcher.jobs import output
from launcher.jobs.pool import tell, try_each
from launcher.jobs.shares import Share
from launcher.progress import Progress
from shards.cache import Cache
from shards.digests import publish_noted, write_digests
from shards.folder import ShardFolder
from shards.places import is_there
from shards.remote import Place, join, name_of
from shards.schema import DataError
from shards.write import write_tar

Members = dict[str, bytes]  # extension -> bytes


class ToWrite(Protocol):
    """One output shard: OUT/NAME, of so many images, into a folder that was made of this, see output.digest_made_of.
    A named tuple."""

    @property
    def out(self) -> Place: ...

    @property
    def name(self) -> str: ...

    @property
    def num_images(self) -> int: ...

    @property
    def made_of(self) -> str: ...

    @property
    def _replace(self) -> Callable[..., Any]: ...


Task = TypeVar("Task", bound=ToWrite)


@dataclass(frozen=True)
class Output(Generic[Task]):
    """An output folder, here or at a URL, what it is made of (see output.open_output), and its shards.

    Attributes:
        likely_bytes: of a shard, where that can be told before there is one.
    """

    folder: Place
    made_of: dict[str, Any]
    tasks: Sequence[Task]
    likely_bytes: int = 0

    @property
    def names(self) -> list[str]:
        return [task.name for task in self.tasks]


def write_outputs(
    outputs: Sequence[Output[Task]],
    work: Callable[[Task], None],
    *,
    share: Share,
    workers: int,
    label: str,
    overwrite: bool = False,
    here: Callable[[Task, Callable[[], None]], None] | None = None,
    devices: bool = False,
    remedy: str = "fix the causes, and start it again",
) -> None:
    """Write what is missing of these folders. It can be killed and run again: finished shards are kept, and only the
    others are written.

    A shard with an image that fails is left out, and reported after all others are written. Other errors, such as a
    full disk, end the job at once.

    Args:
        work: writes one shard, unless it is there.
        share: what of it is this process's.
        workers: processes of this machine; 1 = this one.
        here: the same, for this process: of a task, and a function that it calls after each image, `advance`.
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
        open_outputs(outputs, share, overwrite=overwrite)
    share.wait()
    tasks, room = find_tasks(outputs, share)
    share.wait()  # nobody writes before everybody has looked
    room.check()
    try:
        failed = do_tasks(tasks, work, room, workers=workers, label=label, here=here, devices=devices, said=share.opens)
    finally:
        for one in outputs:
            output.sweep(one.folder)
    tell_failures(share.gather(failed), sum(len(one.tasks) for one in outputs), label, remedy)
    share.wait()
    if share.opens:
        close_outputs(outputs, share)


def open_outputs(outputs: Sequence[Output[Task]], share: Share, *, overwrite: bool) -> None:
    """Claim all folders before the first shard is processed; shards that were changed are written again."""
    for one in outputs:
        output.open_output(one.folder, one.made_of, shards=one.names, overwrite=overwrite)
    for one in outputs:
        output.set_changed_aside(one.folder, share.take(one.names) if share.ranks is None else one.names)


def find_tasks(outputs: Sequence[Output[Task]], share: Share) -> tuple[list[Task], output.Room]:
    """What is missing of this process's share, and the room that all of it needs."""
    tasks: list[Task] = []
    room = output.Room(share.count)
    for one in outputs:
        missing = set(output.list_missing(one.folder, one.names))
        made_of = output.digest_made_of(one.folder) if missing else ""
        tasks += [task._replace(made_of=made_of) for task in share.take(one.tasks) if task.name in missing]
        room.add(one.folder, one.names, one.likely_bytes)
    return tasks, room


def do_tasks(
    tasks: Sequence[Task],
    work: Callable[[Task], None],
    room: output.Room,
    *,
    workers: int,
    label: str,
    here: Callable[[Task, Callable[[], None]], None] | None,
    devices: bool,
    said: bool,
) -> list[str]:
    """Do all of them, see write_outputs; returns why shards failed, in the order of the tasks."""
    failed: dict[int, str] = {}
    with Progress(sum(task.num_images for task in tasks), label, "image", enabled=said) as progress:
        seen = 0  # images of a shard that this process is at

        def advance() -> None:
            nonlocal seen
            seen += 1
            progress.advance()

        alone = None if here is None else lambda task: here(task, advance)
        for number, outcome in try_each(work, tasks, workers, here=alone, devices=devices):
            task = tasks[number]
            if task.num_images > seen:
                progress.advance(task.num_images - seen)
            seen = 0
            if isinstance(outcome, ImageError):
                failed[number] = without_traceback(str(outcome))
            elif isinstance(outcome, BrokenProcessPool):
                raise RunError(
                    f"{label}: a worker process died, most likely because memory ran out: lower the number of workers "
                    "and start it again; finished shards are kept"
                )
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                room.finish(task.out, task.name)
    return [failed[number] for number in sorted(failed)]


def close_outputs(outputs: Sequence[Output[Task]], share: Share) -> None:
    """Require all shards, and note what they hold; of several tasks of srun the last one finds all."""
    for one in outputs:
        if share.count == 1 or share.ranks is not None:
            output.require_all(one.folder, one.names)
        if not output.list_missing(one.folder, one.names):
            write_digests(one.folder, one.names)


def tell_failures(failed: Sequence[str], of_all: int, label: str, remedy: str) -> None:
    """Raise RunError if there are some."""
    if failed:
        said = f"{label}: {len(failed)} of {of_all} shards failed, all others were written:"
        raise RunError(f"{said}\n{tell(failed)}\n{remedy}")


def write_shard(
    task: ToWrite,
    samples: Generator[tuple[int, Members]],
    shards: ShardFolder,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Write the output shard of an image shard, unless another process has meanwhile. One for a URL is written into the
    cache's folder and sent when it is finished. Raises RunError if its folder is no longer what it was."""
    path = join(task.out, task.name)

    def publish(written: Path, _: object) -> None:
        output.require_still(task.out, task.made_of)
        publish_noted(written, path)

    with closing(data_errors_named(samples)) as named:
        if not is_there(path):
            here = path if isinstance(path, Path) else Cache.from_environment().folder / name_of(path)
            write_tar(here, name_by_key(named, shards, advance), publish)


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
