"""Scores + truth -> figures, each with its protocol.

Thresholds are chosen on the `tune` split (groups disjoint from training and validation) and reported on `val`;
what the best threshold on `val` itself would give stands beside it, named as what it is.
"""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from launcher.errors import RunError
from launcher.evaluation.evaluate_masks import evaluate_segments
from launcher.evaluation.measure import Measure, Tally, measure_for
from launcher.evaluation.protocol import made_of, protocol, segment_protocol, sources_of
from launcher.files import appearing, write_whole
from launcher.jobs import output as jobs
from launcher.jobs.label_maps import segment_sources_of
from launcher.jobs.scores import read_scores
from launcher.run import steps
from launcher.run.folder import Run
from launcher.tracking.tracker import open_tracker
from shards.folder import ShardFolder

EVALUATION = "evaluation.json"
PER_IMAGE = "per_image.csv"


def evaluate(run: Path) -> dict[str, Any]:
    """Write RUN/evaluation.json and, for one class, RUN/per_image.csv from whatever CAMs and masks of `val` are there.

    Raises:
        RunError: nothing inferred or segmented yet, or no validation split in the run's config.
    """
    config, about = (of := Run(run)).config, of.about
    if config.data.val is None:
        raise RunError(f"{run}: data.val is not set, so there is nothing to evaluate on")
    sources, segmented = sources_of(run, "val"), segment_sources_of(run, "val")
    if not sources and not segmented:
        raise RunError(f"{run}: no CAMs of 'val' here and no masks; run `wsss infer {run}` or `wsss segment {run}`")
    val = ShardFolder(config.data.val, "pixel")
    tune = ShardFolder(config.data.tune, "pixel") if config.data.tune else None
    fixed, seed = config.evaluate.threshold, config.train.seed
    first, extension = next(iter({**sources, **segmented}.values()))
    report: dict[str, Any] = {
        "run": config.name,
        "checkpoint": made_of(first)["checkpoint"],
        "dataset": {"folder": str(config.data.val), "fingerprint": val.index.fingerprint, "images": len(val)},
        "protocol": protocol(made_of(first), seed)
        if sources
        else segment_protocol(made_of(first), extension, "val", seed),
        "git_commit": about.get("git_commit"),
        "sources": {},
    }
    rows: list[dict[str, Any]] = []
    for name, (folder, kind) in sources.items():
        measure = measured(val, folder, kind, fixed)
        figures = {
            "protocol": protocol(made_of(folder), seed),
            "chain": made_of(folder).get("chain", []),
            "fixed": measure.figures_at(fixed),
            "tuned": None,
        }
        if isinstance(measure, Tally):
            thresholds = {"fixed": fixed}
            if tune and folder.with_name("tune").is_dir():
                tuning = measured(tune, folder.with_name("tune"), kind, fixed)
                thresholds["tuned"] = tuning.best_threshold()  # type: ignore[attr-defined]
                figures["tuned"] = measure.figures_at(thresholds["tuned"])
            figures |= measure.bounds_and_curve()
            rows += [{"source": name, **row} for row in measure.rows(thresholds)]
            report["classification"] = measure.classification()
        report["sources"][name] = figures
    report["sources"] |= evaluate_segments(run, val, seed)
    if rows:
        write_csv(run / PER_IMAGE, rows)
    report = without_nan(report)
    write_whole(run / EVALUATION, json.dumps(report, indent=1))
    return report


def measured(shards: ShardFolder, folder: Path, kind: str, threshold: float) -> Measure:
    """Count every sample of one source. Raises RunError if a shard is missing or the source is of other images."""
    measure = measure_for(shards.index.as_class_set(), threshold)
    jobs.require_same_images(folder, shards.index.fingerprint, "infer, and refine, these images again with --overwrite")
    jobs.require_all(folder, [shard.name for shard in shards.index.shards])
    for shard in shards.index.shards:
        for number, scores in read_scores(shards, folder, shard.name, kind):
            measure.add(scores, kind, shards.mask(number), shards.regions(number))
    return measure


def without_nan(value: Any) -> Any:
    """JSON knows no NaN: a figure that does not exist is null."""
    if isinstance(value, dict):
        return {name: without_nan(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float | np.floating) and math.isnan(value) else value


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with appearing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=names)
        writer.writeheader()
        writer.writerows(rows)


def track(run: Path, report: dict[str, Any]) -> None:
    """Send the final figures to where the run is tracked."""
    tracker = open_tracker(run, Run(run).config.tracking)
    tracker.log(final_metrics(report), steps.step_number(Path(report["checkpoint"])))
    tracker.artifact(run / EVALUATION)
    tracker.close(None)


def final_metrics(report: dict[str, Any]) -> dict[str, float]:
    """{final/SOURCE/CHOICE/figure: value} of an evaluation. MLflow allows no '+' or '@' in a name."""
    return {
        f"final/{source.replace('+', '_').replace('@', '_')}/{choice}/{figure}": value
        for source, figures in report["sources"].items()
        for choice in ("fixed", "tuned")
        for figure, value in (figures[choice] or {}).items()
        if isinstance(value, float)
    }
