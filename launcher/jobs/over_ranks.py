"""Image shards -> output shards of the same names, shared out over the processes that were started together."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.errors import RunError
from launcher.jobs import output
from launcher.progress import Progress
from shards.folder import ShardFolder
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

    Safe to kill and to run again: finished shards stay, the others are done. Called by every rank.

    Args:
        identify: what the output is made of, see output.open_output; called on the first rank alone.
        samples_of: names of shards -> (number, members) of all their samples in order; not called for none.
        label: of the progress.
        overwrite: remove what was made before.

    Raises:
        RunError: the output folder was made of something else, or shards are missing at the end.
    """
    if ranks.is_main_process:
        output.open_output(out, identify(), overwrite=overwrite)
    ranks.wait_for_everyone()
    names = [shard.name for shard in shards.index.shards]
    mine = output.list_missing(out, names)[ranks.process_index :: ranks.num_processes]
    ranks.wait_for_everyone()  # nobody writes before everybody has looked
    total = sum(len(shards.numbers_of(name)) for name in mine)
    with Progress(total, label, "image", enabled=ranks.is_main_process) as progress:
        if mine:
            with closing(samples_of(mine)) as samples:
                for shard_number, of_shard in groupby(samples, key=lambda sample: int(shards.shard_of[sample[0]])):
                    write_tar(out / names[shard_number], name_by_key(of_shard, shards, progress))
    ranks.wait_for_everyone()
    if ranks.is_main_process:
        output.require_all(out, names)


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
