"""Predictions of splits compared with the truth, in worker processes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from launcher.config.whole import Config
from launcher.errors import naming
from launcher.evaluation.measure import Chooser, Measure, Tally, read_truth
from launcher.evaluation.offered_metrics import NewOffered, OfferedMetrics
from launcher.evaluation.sources import Source, new_chooser, new_measure
from launcher.jobs import output, pool
from launcher.jobs.starts import count_processes
from shards.folder import ShardFolder
from shards.places import everywhere
from shards.remote import Place, absolute, join, place_of

FEW_PREDICTIONS = 2000  # fewer are counted here sooner than other processes would start


Counted = TypeVar("Counted", bound=Tally)
Splits = Sequence[tuple[ShardFolder, Sequence[Source]]]


class Task(NamedTuple):
    """One output shard of a source, to be counted in a new tally."""

    source: Source
    images: Place
    fingerprint: str
    shard: str
    threshold: float
    new: Callable[[Source, ShardFolder], Tally]

    @property
    def out(self) -> Place:
        """The shard that is counted."""
        return self.source.folder

    def __str__(self) -> str:
        return str(join(self.out, self.shard))


def count_predictions(
    splits: Splits, config: Config, *, at: Mapping[str, float] | None = None
) -> list[dict[str, Measure]]:
    """The measures to report: {name of the source: its measure} for each split.

    Args:
        at: {source: threshold}; evaluate.threshold for other sources.

    Raises:
        RunError, DataError: see count_all.
    """
    return count_all(new_measure, splits, config, at or {})


def count_for_choice(splits: Splits, config: Config) -> list[dict[str, Chooser]]:
    """Tallies to choose thresholds from, for sources that have one, on splits with masks; raises as count_all does."""
    return count_all(new_chooser, splits, config, {})


def count_offered(
    splits: Splits, config: Config, *, at: Mapping[str, float] | None = None
) -> list[dict[str, OfferedMetrics]]:
    """The metrics of packages (evaluate.metrics) for sources on splits with masks; see count_predictions."""
    return count_all(NewOffered(config.evaluate.metrics), splits, config, at or {})


def count_all(
    new: Callable[[Source, ShardFolder], Counted], splits: Splits, config: Config, at: Mapping[str, float]
) -> list[dict[str, Counted]]:
    """Count every sample of every source once, in worker processes: {name of the source: its tally} for each split.

    The tallies do not depend on the number of workers: shards are joined in order.

    Args:
        new: gives an empty tally for a source of these shards.
        splits: image shards, and the sources that predict them.
        at: {source: threshold}; evaluate.threshold for other sources.

    Raises:
        RunError: a shard of a source is missing, or the source belongs to other images.
        DataError: shards that failed, each with its reason.
    """
    tasks = []
    for shards, sources in splits:
        names = [shard.name for shard in shards.index.shards]
        for source in sources:
            output.require_same_images(source.folder, shards.index.fingerprint, source.again)
            output.require_all(source.folder, names)
            threshold = at.get(source.name, config.evaluate.threshold)
            there: Any = replace(source, folder=everywhere(source.folder))  # type: ignore[type-var]
            images = place_of(absolute(shards.folder))
            tasks += [Task(there, images, shards.index.fingerprint, name, threshold, new) for name in names]
    few = sum(len(shards) * len(sources) for shards, sources in splits) < FEW_PREDICTIONS
    workers = config.evaluate.workers or count_processes(config.launch) or (1 if few else None)
    parts = pool.run_pool(count_shard, tasks, workers=workers, label="evaluate")
    found: list[dict[str, Counted]] = []
    for shards, sources in splits:
        found.append({source.name: new(source, shards) for source in sources})
        for source in sources:
            for _ in shards.index.shards:
                found[-1][source.name].extend(next(parts))
    return found


def count_shard(task: Task) -> Tally:
    """The tally of one shard."""
    shards = pool.open_shards(task.images, task.fingerprint)
    tally = task.new(task.source, shards)
    for number, prediction in task.source.predictions(shards, task.shard, task.threshold):
        with naming(shards.where(number)):
            tally.add(prediction, read_truth(shards, number))
    return tally
