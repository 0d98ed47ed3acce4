"""What was predicted of splits, counted next to the truth in worker processes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from launcher.config.sections import Config
from launcher.errors import naming
from launcher.evaluation.measure import Measure, read_truth
from launcher.evaluation.sources import Source, new_measure
from launcher.jobs import output as jobs
from launcher.jobs import pool
from launcher.jobs.starts import count_processes
from shards.folder import ShardFolder
from shards.places import everywhere
from shards.remote import Place, absolute, join, place_of

FEW_PREDICTIONS = 2000  # that many are counted faster in this process than others can be started


class Task(NamedTuple):
    """One output shard of a source to count."""

    source: Source
    images: Place
    fingerprint: str
    shard: str
    threshold: float
    tunes: bool

    @property
    def out(self) -> Place:
        """Where what is counted lies."""
        return self.source.folder

    def __str__(self) -> str:
        return str(join(self.out, self.shard))


def count_predictions(
    splits: Sequence[tuple[ShardFolder, Sequence[Source]]],
    config: Config,
    *,
    at: Mapping[str, float] | None = None,
    tunes: bool = False,
) -> list[dict[str, Measure]]:
    """Count every sample of every source once, in worker processes: {name of the source: its measure} of each split.

    The measures do not depend on the number of workers: shards are joined in their order.

    Args:
        splits: image shards, and what was predicted of them.
        at: {source: threshold}, of others evaluate.threshold.
        tunes: count what a threshold is chosen by.

    Raises:
        RunError: a shard of a source is missing, or the source is of other images.
        DataError: shards that failed, each with its reason.
    """
    tasks = []
    for shards, sources in splits:
        names = [shard.name for shard in shards.index.shards]
        for source in sources:
            jobs.require_same_images(source.folder, shards.index.fingerprint, source.again)
            jobs.require_all(source.folder, names)
            threshold = (at or {}).get(source.name, config.evaluate.threshold)
            there: Any = replace(source, folder=everywhere(source.folder))  # type: ignore[type-var]
            images = place_of(absolute(shards.folder))
            tasks += [Task(there, images, shards.index.fingerprint, name, threshold, tunes) for name in names]
    few = sum(len(shards) * len(sources) for shards, sources in splits) < FEW_PREDICTIONS
    workers = config.evaluate.workers or count_processes(config.launch) or (1 if few else None)
    parts = pool.run_pool(count_shard, tasks, workers=workers, label="evaluate")
    found: list[dict[str, Measure]] = []
    for shards, sources in splits:
        found.append({source.name: new_measure(source, shards, tunes=tunes) for source in sources})
        for source in sources:
            for _ in shards.index.shards:
                found[-1][source.name].extend(next(parts))
    return found


def count_shard(task: Task) -> Measure:
    """The measure of one shard."""
    shards = pool.open_shards(task.images, task.fingerprint)
    measure = new_measure(task.source, shards, tunes=task.tunes)
    for number, prediction in task.source.predictions(shards, task.shard, task.threshold):
        with naming(shards.where(number)):
            measure.add(prediction, read_truth(shards, number))
    return measure
