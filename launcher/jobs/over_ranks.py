"""Image shards -> output shards of the same names, shared out over the processes that were started together."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from launcher.errors import ConfigError, ImageError, RunError, naming, without_traceback
from launcher.jobs import output
from launcher.progress import Progress
from shards.folder import ShardFolder
from shards.schema import DataError
from shards.write import write_tar

if TYPE_CHECKING:
    from accelerate import Accelerator

    from launcher.run.folder import Run
    from shards.remote import Place

Members = dict[str, bytes]  # extension -> bytes


def write_next_to(
    out: Path,
    shards: ShardFolder,
    ranks: "Accelerator",
    *,
    identify: Callable[[], dict[str, Any]],
    samples_of: Callable[[Sequence[str]], Generator[tuple[int, Members]]],
    label: str,
    overwrite: bool = False,
) -> None:
    """Write OUT/NAME for every image shard NAME that is not there yet; each of n ranks takes every n-th.

    Safe to kill and to run again: finished shards stay, the others are done. A shard with an image that fails is left
    out, all others are written first. Called by every rank.

    Args:
        identify: what the output is made of, see output.open_output; called on the first rank alone.
        samples_of: names of shards -> (number, members) of all their samples in order; not called for none.
        label: of the progress.
        overwrite: remove what was made before.

    Raises:
        RunError: the output folder was made of something else, images that failed, each with its name and reason, or
            shards that are missing at the end.
    """
    if ranks.is_main_process:
        output.open_output(out, identify(), overwrite=overwrite)
    ranks.wait_for_everyone()
    names = [shard.name for shard in shards.index.shards]
    mine = output.list_missing(out, names)[ranks.process_index :: ranks.num_processes]
    ranks.wait_for_everyone()  # nobody writes before everybody has looked
    total = sum(len(shards.numbers_of(name)) for name in mine)
    with Progress(total, label, "image", enabled=ranks.is_main_process) as progress:

        def write(todo: Sequence[str]) -> None:
            with closing(data_errors_named(samples_of(todo))) as samples:
                for shard_number, of_shard in groupby(samples, key=lambda sample: int(shards.shard_of[sample[0]])):
                    write_tar(out / names[shard_number], name_by_key(of_shard, shards, progress))

        failed = write_all(write, out, mine)
    failed = [reason for of_rank in gather_lists(failed, ranks) for reason in of_rank]
    if failed:
        raise RunError(
            f"{label}: {len(failed)} of {len(names)} shards failed, all others are written:\n  "
            + "\n  ".join(failed)
            + "\nmend these images, or leave them out, and write the image shards again"
        )
    ranks.wait_for_everyone()
    if ranks.is_main_process:
        output.require_all(out, names)


def write_all(write: Callable[[Sequence[str]], None], out: Path, names: Sequence[str]) -> list[str]:
    """Write these shards of OUT; returns why some failed, one reason for each.

    Args:
        write: writes shards in their order. It stops at an image that fails, and may read images ahead of those that it
            writes: so the first shard that is missing then is tried alone.
    """
    left, failed = list(names), list[str]()
    while left:
        try:
            write(left)
            break
        except ImageError:
            missing = output.list_missing(out, left)
            if not missing:  # another start of the job has written them
                break
            first, *left = missing
        try:
            write([first])
        except ImageError as error:
            failed.append(without_traceback(str(error)))
    return failed


def data_errors_named(samples: Generator[tuple[int, Members]]) -> Generator[tuple[int, Members]]:
    """The samples; a DataError of their making, which says where, as an ImageError, unlike one of the disk that they
    are written to."""
    with closing(samples):
        try:
            yield from samples
        except DataError as error:
            raise ImageError(str(error)) from error


def gather_lists(mine: list[str], ranks: "Accelerator") -> list[list[str]]:
    """What every rank has, by rank."""
    if ranks.num_processes == 1:
        return [mine]
    from accelerate.utils import gather_object

    return gather_object([mine])


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


def name_by_key(
    samples: Iterable[tuple[int, Members]], shards: ShardFolder, progress: Progress
) -> Iterator[tuple[str, Members]]:
    for number, members in samples:
        yield shards.keys[number], members
        progress.advance()


def open_images(run: "Run", folder: "Place") -> ShardFolder:
    """Image shards for a trained run; raises RunError if they have other classes than it was trained on."""
    shards = ShardFolder(folder)
    if shards.index.classes != run.class_set.classes:
        raise RunError(
            f"{folder} has the classes {shards.index.classes}; {run.folder} was trained on {run.class_set.classes}"
        )
    return shards
