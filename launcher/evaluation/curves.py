"""The plots of a report: losses and validation over steps, figures over thresholds."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from launcher.evaluation.formats import name_class
from launcher.evaluation.judge import LABELS, name_logged
from launcher.evaluation.pictures import plot_curves
from wsss.metrics.counts import THRESHOLDS

Lines = dict[str, tuple[Sequence[float], Sequence[float]]]  # {label: (x, y)}


def plot_runs(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """SVG plots over all runs: every loss that was logged, validation over steps, IoU and false alarms over the
    threshold."""
    one = name_class(run["classes"] for run in runs)
    plots = [(f"Training, {name}", "step", lines) for name, lines in collect_losses(runs).items()]
    plots.append(("IoU on val at the fixed threshold, over training", "step", collect_validation(runs)))
    plots.append(("Average precision of the image labels on val", "step", collect_validation(runs, of_labels=True)))
    plots.append(("Calibration: share that is right on val", "probability", collect_calibration(runs)))
    plots.append(("Per-image IoU on val", "threshold", collect_thresholds(runs, "per_image_iou")))
    alarms = collect_thresholds(runs, "false_alarm_area")
    plots.append((f"False-alarm area on images without {one}", "threshold", alarms))
    return [
        plot_curves(title, x, lines, log_y=title.startswith("Training, ") and all_positive(lines))
        for title, x, lines in plots
        if lines
    ]


def collect_losses(runs: Iterable[Mapping[str, Any]]) -> dict[str, Lines]:
    """{loss: lines of the runs that log it}: what is minimised, and every part of it that a method names."""
    found: dict[str, Lines] = {}
    for run in runs:
        for name in dict.fromkeys(name for line in run["metrics"] for name in line):
            if name.startswith("train/") and name.endswith("loss"):
                add_line(found.setdefault(name.removeprefix("train/"), {}), run["name"], run["metrics"], name)
    return found


def collect_validation(runs: Iterable[Mapping[str, Any]], *, of_labels: bool = False) -> Lines:
    """The leading figure of every kind of map that validation in training judged, or that of the image labels."""
    found: Lines = {}
    for run in runs:
        for kind, name in run["logged"]:
            if (kind == LABELS) == of_labels:
                add_line(found, f"{run['name']} {kind}".strip(), run["metrics"], name_logged(kind, name))
    return found


def collect_calibration(runs: Iterable[Mapping[str, Any]]) -> Lines:
    """How often a class is there over the probability that is said, and the line on which both are equal."""
    found: Lines = {}
    for run in runs:
        if parts := run["evaluation"].get("labels", {}).get("reliability"):
            found[run["name"]] = ([part["probability"] for part in parts], [part["share"] for part in parts])
    return {**found, "equal": ([0.0, 1.0], [0.0, 1.0])} if found else {}


def collect_thresholds(runs: Iterable[Mapping[str, Any]], figure: str) -> Lines:
    """A figure of every source that has one at every threshold; NaN where it does not exist."""
    return {
        f"{run['name']} {source}": (THRESHOLDS.tolist(), [float("nan") if y is None else y for y in curve[figure]])
        for run in runs
        for source, figures in run["evaluation"]["sources"].items()
        if (curve := figures.get("curve")) and any(y is not None for y in curve[figure])
    }


def add_line(lines: Lines, label: str, metrics: Iterable[Mapping[str, float]], name: str) -> None:
    points = [(line["step"], line[name]) for line in metrics if name in line]
    if points:
        lines[label] = tuple(zip(*points, strict=True))  # type: ignore[assignment]


def all_positive(lines: Lines) -> bool:
    return all(value > 0 for _, values in lines.values() for value in values)
