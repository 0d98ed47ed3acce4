"""Predictions + truth -> figures, each with its protocol.

Thresholds are chosen on the `tune` split (groups disjoint from training and validation) and reported on `val`;
what the best threshold on `val` itself would give stands next to it, named as what it is.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from launcher.config.sections import Config
from launcher.errors import RunError, naming
from launcher.evaluation.figures import name_class, pick_headline
from launcher.evaluation.measure import Measure, read_truth
from launcher.evaluation.sources import Source, find_sources, new_measure, read_made_of
from launcher.files import appearing, write_whole
from launcher.jobs import output as jobs
from launcher.jobs import pool
from launcher.run.folder import EVALUATION, Run
from shards.folder import ShardFolder
from shards.remote import Place

PER_IMAGE = "per_image.csv"
FEW_PREDICTIONS = 2000  # that many are counted faster in this process than others can be started


def evaluate(folder: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Write RUN/evaluation.json and, of one class or of image labels, RUN/per_image.csv from whatever CAMs and masks of
    `val` are there. Where it holds no masks the figures are those of image labels alone.

    Args:
        overrides: section.key=value, such as data.val=FOLDER where the data was moved.

    Raises:
        RunError: nothing inferred or segmented yet, no validation split in the config, or outputs of other images.
        DataError: shards that failed, each with its reason.
    """
    run = Run(folder, overrides)
    config = run.config
    if config.data.val is None:
        raise RunError(f"{run}: data.val is not set, so there is nothing to evaluate on")
    sources = find_sources(folder, "val")
    if not sources:
        raise RunError(f"{run}: no CAMs of 'val' here and no masks; run `wsss infer {run}` or `wsss segment {run}`")
    val = ShardFolder(config.data.val)
    if val.index.supervision == "label" and not (sources := [one for one in sources if one.has_threshold]):
        raise RunError(
            f"{run}: {val.folder} holds no masks, so figures are those of class probabilities, which label maps do not "
            f"have; run `wsss infer {run}`"
        )
    measures, thresholds, untuned = measure_run(run, val, sources)
    figures = {
        source.name: describe_source(
            source, measures[source.name], thresholds[source.name], untuned.get(source.name, ""), config.train.seed
        )
        for source in sources
    }
    report = {
        "run": config.name,
        "checkpoint": read_made_of(sources[0].folder)["checkpoint"],
        "dataset": {
            "folder": str(config.data.val),
            "fingerprint": val.index.fingerprint,
            "images": len(val),
            "images_without_truth": max(measure.images_without_truth for measure in measures.values()),
            "classes": list(val.index.classes),
            "supervision": val.index.supervision,
        },
        "protocol": figures[sources[0].name]["protocol"],
        "git_commit": run.about.get("git_commit"),
        "sources": figures,
        "headline": pick_headline(figures, config.cam.kinds),
    }
    for measure in measures.values():
        if classification := measure.classification():
            report["classification"] = classification
            report["labels"] = measure.label_details(val.index.classes)
    rows = [{"source": name, **row} for name, measure in measures.items() for row in measure.rows(thresholds[name])]
    if rows:
        write_csv(folder / PER_IMAGE, rows)
    write_whole(folder / EVALUATION, json.dumps(report, indent=1))
    return report


def measure_run(
    run: Run, val: ShardFolder, sources: Sequence[Source]
) -> tuple[dict[str, Measure], dict[str, dict[str, float]], dict[str, str]]:
    """{source: its measure on val}, {source: {"fixed": threshold, "tuned": the best on tune, if there is one}} and
    {source: why there is none} of the sources that could have one."""
    config, class_set = run.config, val.index.as_class_set()
    tuned = {source.name for source in sources if new_measure(source, val).has_thresholds}
    tuning = [source for source in find_sources(run.folder, "tune") if source.name in tuned]
    splits: list[tuple[ShardFolder, Sequence[Source]]] = [(val, sources)]
    if tuning and config.data.tune is not None:
        splits.append((ShardFolder(config.data.tune, "pixel"), tuning))
    measures, *on_tune = count_predictions(splits, config)
    thresholds = {name: {"fixed": config.evaluate.threshold} for name in measures}
    missing = "data.tune is not set" if config.data.tune is None else "nothing of this source for the tune split"
    untuned = dict.fromkeys(sorted(tuned), missing)
    for name, measure in (on_tune[0] if on_tune else {}).items():
        untuned[name] = f"no image of {config.data.tune} shows {name_class([class_set.classes])}"
        if (best := measure.best_threshold()) is not None:
            thresholds[name]["tuned"] = best
            del untuned[name]
    return measures, thresholds, untuned


def describe_source(
    source: Source, measure: Measure, thresholds: Mapping[str, float], untuned: str, seed: int
) -> dict[str, Any]:
    """The figures of a source at each threshold, what bounds them, how its predictions came about, and why it has no
    tuned threshold ("" if it has one, or has no threshold at all)."""
    figures = {
        choice: ({"threshold": threshold} if source.has_threshold and measure.reads_maps else {})
        | measure.figures_at(threshold)
        for choice, threshold in thresholds.items()
    }
    return {
        "protocol": source.protocol(seed),
        "chain": read_made_of(source.folder).get("chain", []),
        "tuned": None,
        "untuned": untuned,
        **figures,
        **measure.bounds_and_curve(),
    }


class Task(NamedTuple):
    """One output shard of a source to count."""

    source: Source
    images: Place
    fingerprint: str
    shard: str

    def __str__(self) -> str:
        return str(self.source.folder / self.shard)


def count_predictions(
    splits: Sequence[tuple[ShardFolder, Sequence[Source]]], config: Config
) -> list[dict[str, Measure]]:
    """Count every sample of every source once, in worker processes: {name of the source: its measure} of each split.

    The measures do not depend on the number of workers: shards are joined in their order.

    Args:
        splits: image shards, and what was predicted of them.

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
            tasks += [Task(source, shards.folder, shards.index.fingerprint, name) for name in names]
    few = sum(len(shards) * len(sources) for shards, sources in splits) < FEW_PREDICTIONS
    workers = 1 if few and config.evaluate.workers is None else config.evaluate.workers
    parts = pool.run_pool(partial(count_shard, config.evaluate.threshold), tasks, workers=workers, label="evaluate")
    found: list[dict[str, Measure]] = []
    for shards, sources in splits:
        found.append({source.name: new_measure(source, shards) for source in sources})
        for source in sources:
            for _ in shards.index.shards:
                found[-1][source.name].extend(next(parts))
    return found


def count_shard(threshold: float, task: Task) -> Measure:
    """The measure of one shard."""
    shards = open_shards(task.images, task.fingerprint)
    measure = new_measure(task.source, shards)
    for number, prediction in task.source.predictions(shards, task.shard, threshold):
        with naming(shards.where(number)):
            measure.add(prediction, read_truth(shards, number))
    return measure


@lru_cache(maxsize=4)
def open_shards(folder: Place, fingerprint: str) -> ShardFolder:
    """Opened once per worker process, as long as the folder holds what it held."""
    return ShardFolder(folder)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """A table with the names of all rows as its header."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with appearing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=names)
        writer.writeheader()
        writer.writerows(rows)
