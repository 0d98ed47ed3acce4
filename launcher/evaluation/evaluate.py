"""Predictions + truth -> figures, each with its protocol.

Thresholds are chosen on the `tune` split (groups disjoint from training and validation) and reported on `val`;
what the best threshold on `val` itself would give stands next to it, named as what it is.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.errors import RunError
from launcher.evaluation.count import count_predictions
from launcher.evaluation.headline import pick_headline
from launcher.evaluation.measure import Measure
from launcher.evaluation.per_image import PER_IMAGE, write_rows
from launcher.evaluation.sources import Source, find_sources, read_made_of
from launcher.evaluation.tuning import describe_gate, tune
from launcher.files import place_outputs, write_whole
from launcher.jobs.network_job import identify_weights
from launcher.run.folder import EVALUATION, Run
from launcher.run.idle import refuse_unread
from shards.folder import ShardFolder


def evaluate(folder: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Write RUN/evaluation.json and RUN/per_image.csv from whatever CAMs and masks of `val` are there. Where it holds
    no masks the figures are those of image labels alone.

    Args:
        overrides: section.key=value, such as data.val=FOLDER where the data was moved.

    Raises:
        ConfigError: an override without effect.
        RunError: nothing inferred or segmented yet, no validation split in the config, or outputs of other images.
        DataError: shards that failed, each with its reason.
    """
    refuse_unread("evaluate", overrides)
    run = Run(folder, overrides)
    config = run.config
    if config.data.val is None:
        raise RunError(f"{run}: data.val is not set, so there is nothing to evaluate on")
    sources = find_sources(folder, "val")
    if not sources:
        where = place_outputs(folder)
        raise RunError(f"{where}: no CAMs of 'val' here and no masks; run `wsss infer {run}` or `wsss segment {run}`")
    val = ShardFolder(config.data.val)
    if val.index.supervision == "label" and not (sources := [one for one in sources if one.has_threshold]):
        raise RunError(
            f"{run}: {val.folder} holds no masks, so metrics are those of class probabilities, which label maps do not "
            f"have; run `wsss infer {run}`"
        )
    for source in sources:
        require_own(run, source)
    tuned = tune(run, val, sources)
    (measures,) = count_predictions([(val, sources)], config)
    thresholds = {name: {"fixed": config.evaluate.threshold} for name in measures}
    for name, threshold in tuned.thresholds.items():
        thresholds[name]["tuned"] = threshold
    at_tuned = measures  # of one class counts hold every threshold
    if tuned.thresholds and val.index.as_class_set().num_fg_classes > 1:
        again = [source for source in sources if source.name in tuned.thresholds]
        (at_tuned,) = count_predictions([(val, again)], config, at=tuned.thresholds)
    figures = {
        source.name: describe_source(
            source,
            {"fixed": measures[source.name], "tuned": at_tuned.get(source.name, measures[source.name])},
            thresholds[source.name],
            tuned.untuned.get(source.name, ""),
            run,
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
        "tune": tuned.about(config),
        "headline": pick_headline(figures, config.cam.kinds, tuned.about(config)),
    }
    for measure in measures.values():
        if classification := measure.classification():
            report["classification"] = classification
            report["labels"] = measure.label_details(val.index.classes)
            report["gate"] = describe_gate(tuned.gate, measure, str(config.data.tune))
    rows = [
        {"source": name, **row}
        for name, measure in measures.items()
        for row in rows_of({"fixed": measure, "tuned": at_tuned.get(name, measure)}, thresholds[name])
    ]
    if rows:
        write_rows(folder / PER_IMAGE, rows)
    write_whole(folder / EVALUATION, json.dumps(report, indent=1))
    return report


def require_own(run: Run, source: Source) -> None:
    """Raise RunError if a source was made by other weights than the run's checkpoint of this name holds, as where the
    run was trained anew and its outputs, which may lie elsewhere, stayed."""
    made_of = read_made_of(source.folder)
    now = identify_weights(run.folder / made_of["checkpoint"]).get("weights")
    if now and made_of.get("weights", now) != now:
        raise RunError(f"{source.folder}: made by other weights than {made_of['checkpoint']} has now; {source.again}")


def rows_of(measures: Mapping[str, Measure], thresholds: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    """One row per image of a source, with what it is at each threshold."""
    for rows in zip(*(measures[choice].rows({choice: at}) for choice, at in thresholds.items()), strict=True):
        yield {name: value for row in rows for name, value in row.items()}


UNGATED = ", maps of improbable classes included (`wsss predict` leaves them out)"


def describe_source(
    source: Source, measures: Mapping[str, Measure], thresholds: Mapping[str, float], untuned: str, run: Run
) -> dict[str, Any]:
    """The figures of a source at each threshold, what bounds them, how its predictions came about, and why it has no
    tuned threshold ("" if it has one, or has no threshold at all).

    Args:
        measures, thresholds: by `fixed` and `tuned`.
    """
    cut = source.has_threshold and measures["fixed"].reads_maps
    figures = {
        choice: ({"threshold": threshold} if cut else {}) | measures[choice].figures_at(threshold)
        for choice, threshold in thresholds.items()
    }
    made_of = read_made_of(source.folder)
    how = ", one threshold for all classes" if cut and len(run.class_set.classes) > 1 else ""
    if how and made_of["cam"]["classes"] == "all":
        how += UNGATED
    return {
        "protocol": source.protocol(run.config.train.seed) + how,
        "chain": made_of.get("chain", []),
        "tuned": None,
        "untuned": untuned,
        **figures,
        **measures["fixed"].bounds_and_curve(),
    }
