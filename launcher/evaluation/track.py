"""An evaluation sent to the trackers of its run: every metric, and a summary of a few."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.evaluation.figures import order_figures
from launcher.evaluation.formats import format_figure, name_class
from launcher.run import steps
from launcher.run.folder import EVALUATION, Run
from launcher.tracking.mlflow_pages import COLUMNS, SUMMARY
from launcher.tracking.tracker import open_tracker
from wsss.metrics.base import METRICS

NO_NAME = r"[^\w\-. /]"  # characters that no tracker allows in a name


def track(run: Path, report: dict[str, Any]) -> None:
    """Send the final metrics to the trackers of the run."""
    tracker = open_tracker(run, Run(run).config.tracking)
    step = steps.step_number(Path(report["checkpoint"]))
    summary = summarise(report)
    tracker.log({**{f"{SUMMARY}{name}": value for name, value in summary.items()}, **final_metrics(report)}, step)
    if summary:
        tracker.tell(evaluation=describe_summary(report, summary))
    tracker.artifact(run / EVALUATION)
    tracker.close(None)


def summarise(report: Mapping[str, Any]) -> dict[str, float]:
    """The few metrics shown for a run in a list of runs: those of its headline, of packages, and of the image
    labels."""
    headline = report["headline"]
    of_maps = report["sources"][headline["source"]][headline["choice"]]
    found = {**report.get("classification", {}), **of_maps}
    offered = (name for name in found if name in METRICS)
    return {name: found[name] for name in (*COLUMNS, *offered) if isinstance(found.get(name), float)}


def describe_summary(report: Mapping[str, Any], summary: Mapping[str, float]) -> str:
    one = name_class([report["dataset"]["classes"]])
    said = [format_figure(figure, summary[name], one, unit=" %") for name, figure in order_figures(summary).items()]
    source, choice = report["headline"]["source"], report["headline"]["choice"]
    return f"{source} ({choice}) of {Path(report['checkpoint']).name}: " + ", ".join(said)


def final_metrics(report: dict[str, Any]) -> dict[str, float]:
    """{final/SOURCE/CHOICE/figure: value} of an evaluation, final/labels/figure for its image labels and, if there are
    several classes, for each final/classes/NAME/iou (of the headline), .../average_precision and .../f1.

    MLflow allows no '+' or '@' in a name.
    """
    found = {
        f"{source}/{choice}/{figure}": value
        for source, figures in report["sources"].items()
        for choice in ("fixed", "tuned")
        for figure, value in (figures[choice] or {}).items()
    }
    found |= {f"labels/{figure}": value for figure, value in report.get("classification", {}).items()}
    if len(report["dataset"]["classes"]) > 1:
        headline = report["headline"]
        ious = report["sources"][headline["source"]][headline["choice"]].get("class_iou", {})
        found |= {f"classes/{name}/iou": iou for name, iou in ious.items()}
        for name, about in report.get("labels", {}).get("classes", {}).items():
            found |= {f"classes/{name}/{figure}": about[figure] for figure in ("average_precision", "f1")}
    return {f"final/{re.sub(NO_NAME, '_', name)}": value for name, value in found.items() if isinstance(value, float)}
