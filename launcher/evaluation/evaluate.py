"""Predictions + truth -> metrics, each with its protocol.

Thresholds are chosen on the `tune` split, whose groups are in neither training nor validation, and reported on `val`.
The value at the threshold that is best on `val` itself is given, too, and named as such.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.config.whole import Config
from launcher.errors import RunError
from launcher.evaluation.class_sums import CLASS_SUMS, write_class_sums
from launcher.evaluation.count import count_offered, count_predictions
from launcher.evaluation.headline import pick_headline
from launcher.evaluation.measure import Measure
from launcher.evaluation.offered_metrics import check_metrics, describe_metrics
from launcher.evaluation.per_image import PER_IMAGE, write_rows
from launcher.evaluation.sources import Source, find_sources, read_made_of
from launcher.evaluation.tuning import Tuned, describe_gate, tune
from launcher.files import place_outputs, typed, write_whole
from launcher.jobs.network_job import identify_checkpoint
from launcher.run.folder import EVALUATION, Run
from launcher.run.idle import refuse_overrides
from launcher.run.lock import require_writable
from launcher.run.steps import is_complete
from shards.folder import ShardFolder


def evaluate(folder: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Write RUN/evaluation.json, RUN/per_image.csv and, for several classes, RUN/class_sums.npz from all CAMs and masks
    of `val` that exist. If `val` has no masks, the metrics are those of image labels only.

    Args:
        overrides: section.key=value, such as data.val=FOLDER after the data was moved.

    Raises:
        ConfigError: an override without effect, or evaluate.metrics for a `val` without masks.
        RunError: nothing inferred or segmented yet, no validation split in the config, outputs of other images, or
            the run's folder cannot be written, as a colleague's.
        DataError: shards that failed, each with its reason.
    """
    refuse_overrides("evaluate", overrides)
    run = Run(folder, overrides)
    require_writable(folder)
    val, sources = find_validated(run)
    check_metrics(run.config, val)
    tuned = tune(run, val, sources)
    judged = judge_sources(val, sources, tuned, run.config)
    report = make_report(run, val, sources, tuned, judged)
    rows = [{"source": name, **row} for name, one in judged.items() for row in one.rows()]
    write_rows(folder / PER_IMAGE, rows)
    by_choice = {(name, choice): of for name, one in judged.items() for choice, of in one.measures.items()}
    write_class_sums(folder / CLASS_SUMS, by_choice)
    write_whole(folder / EVALUATION, json.dumps(report, indent=1))
    return report


def find_validated(run: Run) -> tuple[ShardFolder, list[Source]]:
    """The run's `val`, and the sources that can be judged by its masks or labels. Raises as evaluate does."""
    config = run.config
    if config.data.val is None:
        raise RunError(f"{run}: data.val is not set, so there is nothing to evaluate on")
    sources = find_sources(run.folder, "val")
    if not sources:
        where = place_outputs(run.folder)
        makes = f"`{typed('infer', run)}` or `{typed('segment', run)}`"
        raise RunError(f"{where}: no CAMs or masks of 'val' here; run {makes}")
    val = ShardFolder(config.data.val)
    if val.index.supervision == "label" and not (sources := [one for one in sources if one.has_threshold]):
        raise RunError(
            f"{run}: {val.folder} holds no masks, so metrics are computed from class probabilities, which label maps "
            f"do not have; run `{typed('infer', run)}`"
        )
    for source in sources:
        require_own(run, source)
    return val, sources


@dataclass(frozen=True)
class Judged:
    """A source's measures, thresholds and metrics of packages, each for `fixed` and, if the tune split chose a
    threshold, `tuned`."""

    measures: Mapping[str, Measure]
    thresholds: Mapping[str, float]
    offered: Mapping[str, Mapping[str, float | None]]

    @property
    def fixed(self) -> Measure:
        return self.measures["fixed"]

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row per image, with its values at each threshold."""
        of_choices = (self.measures[choice].rows({choice: at}) for choice, at in self.thresholds.items())
        for rows in zip(*of_choices, strict=True):
            yield {name: value for row in rows for name, value in row.items()}


def judge_sources(val: ShardFolder, sources: Sequence[Source], tuned: Tuned, config: Config) -> dict[str, Judged]:
    """{source: judged}, each counted once; scores of several classes are counted once per threshold."""
    (fixed,) = count_predictions([(val, sources)], config)
    at_tuned = fixed  # counts of one class hold every threshold
    again = [source for source in sources if source.name in tuned.thresholds]
    if again and val.index.as_class_set().num_fg_classes > 1:
        (at_tuned,) = count_predictions([(val, again)], config, at=tuned.thresholds)
    offered = judge_offered(val, {"fixed": sources, "tuned": again}, tuned, config)
    judged = {}
    for name, measure in fixed.items():
        measures, thresholds = {"fixed": measure}, {"fixed": config.evaluate.threshold}
        if name in tuned.thresholds:
            measures["tuned"], thresholds["tuned"] = at_tuned[name], tuned.thresholds[name]
        judged[name] = Judged(measures, thresholds, {choice: offered[choice].get(name, {}) for choice in measures})
    return judged


def judge_offered(
    val: ShardFolder, wanted: Mapping[str, Sequence[Source]], tuned: Tuned, config: Config
) -> dict[str, dict[str, dict[str, float | None]]]:
    """{fixed or tuned: {source: metrics of packages}}, counted once per threshold; empty if evaluate.metrics is."""
    found: dict[str, dict[str, dict[str, float | None]]] = {choice: {} for choice in wanted}
    for choice, sources in wanted.items() if config.evaluate.metrics else ():
        at = tuned.thresholds if choice == "tuned" else {}
        (counted,) = count_offered([(val, sources)], config, at=at)
        found[choice] = {name: metrics.figures() for name, metrics in counted.items()}
    return found


def make_report(
    run: Run, val: ShardFolder, sources: Sequence[Source], tuned: Tuned, judged: Mapping[str, Judged]
) -> dict[str, Any]:
    """The contents of evaluation.json."""
    config = run.config
    figures = {
        source.name: describe_source(source, judged[source.name], tuned.untuned.get(source.name, ""), run)
        for source in sources
    }
    report = {
        "run": config.name,
        "checkpoint": read_made_of(sources[0].folder)["checkpoint"],
        "dataset": {
            "folder": str(config.data.val),
            "fingerprint": val.index.fingerprint,
            "images": len(val),
            "images_without_truth": max(one.fixed.images_without_truth for one in judged.values()),
            "classes": list(val.index.classes),
            "supervision": val.index.supervision,
        },
        "protocol": figures[sources[0].name]["protocol"],
        "git_commit": run.about.get("git_commit"),
        "sources": figures,
        "tune": tuned.about(config),
        "headline": pick_headline(figures, config.cam.kinds, tuned.about(config)),
    }
    if config.evaluate.metrics:
        report["metrics"] = describe_metrics(config)
    for one in judged.values():
        if classification := one.fixed.classification():
            report["classification"] = classification
            report["labels"] = one.fixed.label_details(val.index.classes)
            report["gate"] = describe_gate(tuned.gate, one.fixed, str(config.data.tune))
    return report


def require_own(run: Run, source: Source) -> None:
    """Raise RunError if a source was made with other weights than the run's checkpoint of this name has now, for
    example because the run was trained again and its old outputs were kept."""
    made_of = read_made_of(source.folder)
    checkpoint = run.folder / made_of["checkpoint"]
    if is_complete(checkpoint) and identify_checkpoint(checkpoint)["weights"] != made_of["weights"]:
        raise RunError(f"{source.folder}: made with other weights than {made_of['checkpoint']} has now; {source.again}")


UNGATED = ", maps of improbable classes included (`wsss predict` leaves them out)"


def describe_source(source: Source, judged: Judged, untuned: str, run: Run) -> dict[str, Any]:
    """The metrics of a source at each threshold, their bounds, how its predictions were made, and why it has no tuned
    threshold ("" if it has one, or has no threshold at all)."""
    cut = source.has_threshold and judged.fixed.reads_maps
    figures = {
        choice: ({"threshold": threshold} if cut else {})
        | judged.measures[choice].figures_at(threshold)
        | dict(judged.offered[choice])
        for choice, threshold in judged.thresholds.items()
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
        **judged.fixed.bounds_and_curve(),
    }
