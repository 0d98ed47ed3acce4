"""A job that applies a network to image shards: what is sent to other processes, and how a process keeps its loaded
network."""

import hashlib
import pickle
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence, Sized
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from launcher.errors import ConfigError, RunError, naming
from launcher.jobs.over_shards import Members, Output, write_outputs, write_shard
from launcher.jobs.pool import open_shards
from launcher.jobs.shares import Share
from launcher.jobs.starts import stamp_of
from launcher.progress import say
from launcher.run.steps import MODEL, read_state
from shards.folder import ShardFolder
from shards.places import everywhere
from shards.remote import Place, absolute, join, place_of
from shards.schema import hint_at_order

if TYPE_CHECKING:
    from launcher.run.build import Trained
    from launcher.run.folder import Run

# name of an image shard -> (number, members) of its samples, in order
SamplesOf = Callable[[str], Generator[tuple[int, Members]]]


class NetworkTask(NamedTuple):
    """One shard of a job of a network."""

    out: Place
    name: str
    num_images: int
    made_of: str = ""

    def __str__(self) -> str:
        return str(join(self.out, self.name))


@dataclass(frozen=True, kw_only=True)
class NetworkJob(ABC):
    """A job that applies a network to image shards: all that a process needs to do a part of it. It is sent to other
    processes.

    Attributes:
        out: the output folder, a place that means the same everywhere, as all of a job's.
        shards: folder of the image shards, and
        fingerprint: of what it holds.
        weights: tells the network from another one at the same place.
    """

    out: Place
    shards: Place
    fingerprint: str
    weights: str

    @abstractmethod
    def opened(self) -> AbstractContextManager[SamplesOf]:
        """Load the network on this process's device; inside the block it can be asked for the samples of shards."""


@dataclass(frozen=True, kw_only=True)
class RunJob(NetworkJob):
    """A job of the network of a run's checkpoint, as its config with these overrides says."""

    run: Path
    checkpoint: str
    overrides: tuple[str, ...]

    @contextmanager
    def opened(self) -> Iterator[SamplesOf]:
        from launcher.run.build import load_trained
        from launcher.run.folder import Run

        trained = load_trained(Run(self.run, self.overrides).at(self.checkpoint))
        with self.samples(trained, open_shards(self.shards, self.fingerprint)) as samples_of:
            yield samples_of

    @abstractmethod
    def samples(self, trained: "Trained", images: ShardFolder) -> AbstractContextManager[SamplesOf]:
        """As opened, with what is loaded already."""


def identify_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """What an output records about the weights that made it, since another training may use the name of their
    checkpoint. The decay of their average is the checkpoint's: a fork has its parent's until it saves its own."""
    state = read_state(checkpoint)
    return {"checkpoint": checkpoint.name, "weights": state["sha256"][MODEL], "ema_decay": state["ema_decay"]}


def say_where(
    trained: "Trained", images: ShardFolder, *, run: Path, out: Place, overrides: Sequence[str]
) -> dict[str, Any]:
    """The attributes of a RunJob: its network, images and output."""
    return {
        "out": everywhere(out),
        "shards": place_of(absolute(images.folder)),
        "fingerprint": images.index.fingerprint,
        "weights": stamp_of(trained.checkpoint),
        "run": run.absolute(),
        "checkpoint": trained.checkpoint.name,
        "overrides": tuple(overrides),
    }


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

        def here(task: NetworkTask, advance: Callable[[], None]) -> None:
            if not samples_of:
                samples_of.append(stack.enter_context(opened()))
            write_shard(task, samples_of[0](task.name), images, advance)

        write_outputs(
            [Output(job.out, made_of, tasks)],
            WriteThere(job),
            share=share,
            workers=processes,
            label=label,
            overwrite=overwrite,
            here=here,
            devices=True,
            remedy="repair these images, or leave them out, and write the image shards again",
        )


class WriteThere:
    """Writes a shard in a worker process, which keeps the network that it has loaded for the next one. It is sent with
    a digest of its job, which tells jobs apart, whatever their settings are made of."""

    def __init__(self, job: NetworkJob, key: str = "") -> None:
        self.job, self.key = job, key

    def __reduce__(self) -> tuple[Any, ...]:
        return WriteThere, (self.job, self.key or hashlib.sha256(pickle.dumps(self.job)).hexdigest())

    def __call__(self, task: NetworkTask) -> None:
        job, samples_of = KEPT.open(self.job, self.key)
        write_shard(task, samples_of(task.name), open_shards(job.shards, job.fingerprint))


class Kept:
    """The job that this worker process has open; only one, since its network takes the device's memory."""

    def __init__(self) -> None:
        self.key, self.stack = "", ExitStack()
        self.job: Any = None
        self.samples_of: Any = None

    def open(self, job: NetworkJob, key: str) -> tuple[NetworkJob, SamplesOf]:
        if key != self.key:
            self.stack.close()
            self.key, self.job, self.samples_of = "", None, None
            self.samples_of = self.stack.enter_context(job.opened())
            self.key, self.job = key, job
        return self.job, self.samples_of


KEPT = Kept()

LARGE_PX = 8_000_000  # of an image that goes through the network at its own size


def tell_large(where: str, size: Sequence[int], told: list[str]) -> None:
    """Name the first image of a shard that is so large that the network may take long for it: with attention over all
    of it, four times as many pixels take sixteen times as long.

    Args:
        size: (..., height, width).
        told: of this shard, what was said.
    """
    height, width = size[-2:]
    if height * width >= LARGE_PX and not told:
        told.append(f"{where}: {height} x {width} pixels go through the network at their own size, which may take long")
        say(told[0], file=sys.stderr)


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


def open_images(run: "Run", folder: Place) -> ShardFolder:
    """Image shards for a trained run; raises RunError if they have other classes than it was trained on."""
    shards = ShardFolder(folder)
    if shards.index.classes != run.class_set.classes:
        raise RunError(
            f"{folder} has the classes {shards.index.classes}, but {run.folder} was trained on "
            f"{run.class_set.classes}{hint_at_order(shards.index.classes, run.class_set.classes)}"
        )
    return shards
