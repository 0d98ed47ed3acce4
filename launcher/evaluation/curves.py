"""The plots of a report: losses and validation over steps, metrics over thresholds, classes side by side.

In a plot, a run keeps its colour and a kind of map its dashes. Metrics are in percent, thresholds are not.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from launcher.evaluation.figures import FIGURES
from launcher.evaluation.formats import name_class
from launcher.evaluation.judge import LABELS, name_logged
from launcher.evaluation.plots import MOST_LINES, Line, plot_bars, plot_lines
from launcher.evaluation.thresholds import nearest
from wsss.metrics.counts import THRESHOLDS

Lines = dict[str, Line]
Run = Mapping[str, Any]
PERCENT = "percent"  # the unit of axes
NONE = float("nan")  # a metric that does not exist
MOST_BARS = 30  # classes in a plot; of more, those with the lowest values


def plot_runs(runs: Sequence[Run]) -> list[str]:
    """SVG plots of all runs: every logged loss, validation over steps, and for each headline IoU and false alarms over
    thresholds, precision over recall, and calibration."""
    one = name_class(run["classes"] for run in runs)
    losses = [(f"Training, {name}", lines) for name, lines in collect_losses(runs).items()]
    drawn = [svg for title, lines in losses for svg in plot_all(title, "step", lines, log_y=all_positive(lines))]
    plots: list[tuple[str, str, Lines]] = []
    plots.append(("IoU on val at the fixed threshold, over training", "step", collect_validation(runs)))
    plots.append(("Average precision of the image labels on val", "step", collect_validation(runs, of_labels=True)))
    plots.append(("Per-image IoU on val, and with each image's best threshold", "threshold", collect_oracle(runs)))
    plots.append(("Precision over recall of pixels on val", f"recall, {PERCENT}", collect_precision(runs)))
    alarms = collect_headlines(runs, "false_alarm_area")
    plots.append((f"False-alarm area on images without {one}", "threshold", alarms))
    plots.append(("Calibration: share that is right on val", f"probability, {PERCENT}", collect_calibration(runs)))
    return [
        *drawn,
        *(svg for title, x, lines in plots for svg in plot_all(title, x, in_percent(lines, x), y_label=PERCENT)),
    ]


def plot_sources(runs: Sequence[Run]) -> list[str]:
    """SVG plots for each run with several maps or masks: per-image IoU of each over the threshold."""
    plots = {run["name"]: collect_thresholds(run, "per_image_iou") for run in runs}
    return [
        svg
        for name, lines in plots.items()
        if len(lines) > 1
        for svg in plot_all(f"Per-image IoU on val, {name}", "threshold", in_percent(lines), y_label=PERCENT)
    ]


def plot_classes(run: Run) -> str | None:
    """A bar for each class: IoU of the headline, or average precision without masks; None if there is one class."""
    at = run["headline"].at
    of_labels = run["evaluation"].get("labels", {}).get("classes", {})
    figures = at.get("class_iou") or {name: about["average_precision"] for name, about in of_labels.items()}
    bars = {name: 100 * value for name, value in figures.items() if value is not None}
    if len(run["classes"]) == 1 or not bars:
        return None
    what = "IoU" if "class_iou" in at else FIGURES["average_precision"].heading
    lowest = sorted(bars, key=lambda name: bars[name])[:MOST_BARS]
    told = f", the {MOST_BARS} lowest of {len(bars)}" if len(bars) > MOST_BARS else ""
    title = f"{run['name']}: {what} of each class{told}"
    return plot_bars(title, {name: bars[name] for name in reversed(lowest)})


def in_percent(lines: Lines, x_label: str = "") -> Lines:
    """Lines of metrics in [0, 1] in percent; their x, too, if its label says percent."""
    factor = 100 if x_label.endswith(PERCENT) else 1
    return {
        name: line._replace(
            x=[factor * x for x in line.x],
            y=[100 * y for y in line.y],
            mark=None if line.mark is None else factor * line.mark,
        )
        for name, line in lines.items()
    }


def plot_all(title: str, x_label: str, lines: Lines, *, y_label: str = "", log_y: bool = False) -> Iterator[str]:
    """Plots of at most MOST_LINES lines each; none if no line has two points. Lines of one point, which are dots, are
    left out if there are many lines."""
    drawn = {name: line for name, line in lines.items() if line.points > 1}
    if not drawn:
        return
    lines = lines if len(lines) <= MOST_LINES else drawn
    parts, left = -(-len(lines) // MOST_LINES), iter(lines.items())
    for part in range(1, parts + 1):
        of_parts = f" ({part} of {parts})" if parts > 1 else ""
        yield plot_lines(title + of_parts, x_label, dict(islice(left, MOST_LINES)), y_label=y_label, log_y=log_y)


def collect_losses(runs: Iterable[Run]) -> dict[str, Lines]:
    """{loss: lines of the runs that log it}: the minimised loss, and every part of it that a method names."""
    found: dict[str, Lines] = {}
    for colour, run in enumerate(runs):
        for name in dict.fromkeys(name for line in run["metrics"] for name in line):
            if name.startswith("train/") and name.endswith("loss"):
                lines = found.setdefault(name.removeprefix("train/"), {})
                lines[run["name"]] = over_steps(run, name, colour)
    return dict(sorted(found.items(), key=lambda item: item[0] != "loss"))  # the minimised loss comes first


def collect_validation(runs: Iterable[Run], *, of_labels: bool = False) -> Lines:
    """The leading metric of every kind of map in validation during training, or that of the image labels."""
    found: Lines = {}
    for colour, run in enumerate(runs):
        chosen = [(kind, name) for kind, name in run["logged"] if (kind == LABELS) == of_labels]
        for dash, (kind, name) in enumerate(chosen):
            line = over_steps(run, name_logged(kind, name), colour, dash)
            if line.points:
                found[f"{run['name']} {kind}".strip()] = line
    return found


def collect_calibration(runs: Iterable[Run]) -> Lines:
    """Share of cases in which a class is present over its predicted probability, and the line on which both are
    equal."""
    found: Lines = {}
    for colour, run in enumerate(runs):
        if parts := run["evaluation"].get("labels", {}).get("reliability"):
            found[run["name"]] = Line(
                [part["probability"] for part in parts], [part["share"] for part in parts], colour
            )
    return {**found, "equal": Line([0.0, 1.0], [0.0, 1.0], len(found), dash=2)} if found else {}


def collect_oracle(runs: Sequence[Run]) -> Lines:
    """Per-image IoU of each headline over the threshold, with a dot at the one that was used, and a level line for each
    image's own best threshold: no single threshold closes the gap."""
    found: Lines = {}
    oracles = {headline_name(run): run["source"].get("oracle_per_image_iou") for run in runs}
    for name, line in collect_headlines(runs, "per_image_iou").items():
        found[name] = line
        oracle = oracles[name]
        if oracle is not None:
            found[f"{name}, each image's best"] = Line([0.0, 1.0], [oracle, oracle], line.colour, dash=2)
    return found


def collect_precision(runs: Iterable[Run]) -> Lines:
    """Precision over recall of each headline at all thresholds, with a dot at the one that was used."""
    recall, precision = (collect_headlines(runs, figure) for figure in ("recall", "precision"))
    found: Lines = {}
    for name, line in recall.items():
        if name in precision:
            mark = None if line.mark is None else line.y[nearest(line.mark)]
            found[name] = Line(line.y, precision[name].y, line.colour, mark=mark)
    return found


def headline_name(run: Run) -> str:
    return f"{run['name']} {run['headline'].source}"


def collect_headlines(runs: Iterable[Run], figure: str) -> Lines:
    """A metric of each run's headline at every threshold, with a dot at the one that was used."""
    found: Lines = {}
    for colour, run in enumerate(runs):
        name = run["headline"].source
        if line := collect_thresholds(run, figure).get(name):
            found[headline_name(run)] = line._replace(colour=colour, dash=0, mark=run["headline"].at.get("threshold"))
    return found


def collect_thresholds(run: Run, figure: str) -> Lines:
    """A metric at every threshold, for the sources that have it; NaN where it does not exist. Refined scores are
    dashed."""
    found: Lines = {}
    for number, (source, figures) in enumerate(run["evaluation"]["sources"].items()):
        if (curve := figures.get("curve")) and any(y is not None for y in curve[figure]):
            values = [NONE if y is None else y for y in curve[figure]]
            found[source] = Line(THRESHOLDS.tolist(), values, number, dash=1 if "+" in source else 0)
    return found


def over_steps(run: Run, name: str, colour: int, dash: int = 0) -> Line:
    """A metric over the steps at which it was logged."""
    points = [(line["step"], line[name]) for line in run["metrics"] if name in line]
    return Line([step for step, _ in points], [value for _, value in points], colour, dash)


def all_positive(lines: Lines) -> bool:
    return all(value > 0 for line in lines.values() for value in line.y)
