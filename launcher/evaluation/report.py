"""Runs -> one HTML page: figures with their protocol, curves, overlays. The page needs no other file."""

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from launcher.config.sections import Config
from launcher.errors import RunError
from launcher.evaluation.evaluate import EVALUATION
from launcher.evaluation.galleries import galleries
from launcher.evaluation.pictures import curves_svg
from launcher.evaluation.validate_masks import KINDS
from launcher.files import write_whole
from launcher.run.folder import CONFIG, Run
from launcher.tracking.tracker import Tracker, read_metrics
from wsss.metrics.counts import THRESHOLDS

REPORT = "report.html"
"""The figures of the table: (key, heading, what it says)."""
COLUMNS = (
    ("per_image_iou", "per-image IoU", "mean over the images with smoke of the IoU of smoke: the smoke paper's mIoU"),
    ("per_image_iou_gated", "… gated", "the same, predicting nothing where the classifier sees no smoke (p < 0.5)"),
    ("miou", "mIoU", "mean IoU over the classes, background included, by one confusion matrix"),
    ("pixel_accuracy", "pixel accuracy", "share of pixels named right"),
    ("pooled_iou", "pooled IoU", "IoU of smoke with the pixels of all images in one pot"),
    ("fg_bg_miou", "fg/bg mIoU", "mean of the pooled IoU of smoke and of background"),
    ("precision", "precision", "share of predicted pixels that are smoke"),
    ("recall", "recall", "share of smoke pixels that are predicted"),
    ("false_alarm_area", "false-alarm area", "mean share of the image predicted on smoke-free images"),
    ("false_alarm_area_gated", "… gated", "the same, predicting nothing where the classifier sees no smoke"),
    ("chimney_area", "chimney area", "mean share of chimney pixels predicted to be smoke, where a chimney stands"),
)


def write_report(folder: Path) -> Path:
    """Write FOLDER/report.html about the run in it, or about all runs below it.

    Raises:
        RunError: no run with an evaluation there.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    runs = sorted(path.parent for path in [*folder.glob(CONFIG), *folder.glob(f"**/{CONFIG}")])
    runs = [run for run in dict.fromkeys(runs) if (run / EVALUATION).is_file()]
    if not runs:
        raise RunError(f"{folder}: no run with figures in or below it; run `wsss evaluate RUN` first")
    runs.sort(key=lambda run: Run(run).about["started"])
    described = [describe(run) for run in runs]
    environment = Environment(
        loader=PackageLoader("launcher.evaluation", "."),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
    )
    page = environment.get_template("report_template.html").render(
        title=str(folder),
        written=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        columns=[column for column in COLUMNS if any(column[0] in row for run in described for row in run["rows"])],
        runs=described,
        curves=curves(described),
        galleries=galleries(runs),
    )
    out = folder / REPORT
    write_whole(out, page)
    answers = True
    for run in runs:
        answers = attach(run, out, send=answers)
    return out


def describe(run: Path) -> dict[str, Any]:
    """What the page says of one run."""
    config, about = (of := Run(run)).config, of.about
    evaluation = json.loads((run / EVALUATION).read_text())
    return {
        "name": config.name,
        "method": method_line(config),
        "config": (run / CONFIG).read_text(),
        "about": about,
        "evaluation": evaluation,
        "metrics": read_metrics(run),
        "class_table": class_table(evaluation),
        "rows": [row for source, figures in evaluation["sources"].items() for row in table_rows(source, figures)],
    }


def method_line(config: Config) -> str:
    """The method, its options that matter and its schedule, in one line."""
    method = config.method.name
    if config.method.name == "distill":
        options = config.method.options
        method = f"distill, λ = {options['align_weight']:g}, {options['level']} {options['metric']}"
    return f"{config.model.options.get('timm_name', config.model.name)}; {method}; {config.train.steps} steps"


def table_rows(source: str, figures: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per threshold choice of a source, figures in percent."""
    rows = []
    for choice in ("fixed", "tuned"):
        at = figures[choice]
        if at is None:
            continue
        row = {name: percent(value) for name, value in at.items() if isinstance(value, float | None)}
        row |= {"source": source, "chain": chain_line(figures["chain"]), "choice": choice}
        row["threshold"] = f"{at['threshold']:.2f}" if "threshold" in at else "–"
        low, high = at.get("miou_interval") or at["per_image_iou_interval"]
        row["interval"] = f"{percent(low)} – {percent(high)}"
        if "per_image_iou" in at:
            row["best_on_val"] = percent(figures["best_on_val"]["per_image_iou"])
            row["oracle"] = percent(figures["oracle_per_image_iou"])
        rows.append(row)
    return rows


def class_table(evaluation: dict[str, Any]) -> dict[str, Any] | None:
    """IoU of every class, one column per source that has several classes; None without such a source."""
    columns = {
        source: figures["fixed"]["class_iou"]
        for source, figures in evaluation["sources"].items()
        if "class_iou" in figures["fixed"]
    }
    if not columns:
        return None
    names = list(next(iter(columns.values())))
    return {
        "sources": list(columns),
        "rows": [(name, [percent(of_source[name]) for of_source in columns.values()]) for name in names],
    }


def chain_line(chain: list[dict[str, Any]]) -> str:
    """The refiners with all their options, for who wants to know exactly."""
    return "; ".join(
        f"{step['name']} " + ", ".join(f"{k} {v}" for k, v in step.items() if k != "name") for step in chain
    )


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def curves(runs: list[dict[str, Any]]) -> list[str]:
    """SVG plots over all runs: training losses, validation over steps, IoU and false alarms over the threshold."""
    losses: dict[str, Any] = {}
    validation: dict[str, Any] = {}
    overlap: dict[str, Any] = {}
    alarms: dict[str, Any] = {}
    for run in runs:
        for name, into in (("train/cls_loss", losses), ("train/align_loss", losses)):
            add_line(into, f"{run['name']} {name.removeprefix('train/')}", run["metrics"], name)
        for kind in KINDS:
            add_line(validation, f"{run['name']} {kind}", run["metrics"], f"val/{kind}/miou")
        for source, figures in run["evaluation"]["sources"].items():
            for figure in ("per_image_iou", "miou"):
                add_line(validation, f"{run['name']} {source}", run["metrics"], f"val/{source}/{figure}")
            if "curve" in figures:
                overlap[f"{run['name']} {source}"] = (THRESHOLDS, plottable(figures["curve"]["per_image_iou"]))
                alarms[f"{run['name']} {source}"] = (THRESHOLDS, plottable(figures["curve"]["false_alarm_area"]))
    plots = [
        ("Training loss", "step", losses, True),
        ("IoU on val at the fixed threshold", "step", validation, False),
        ("Per-image IoU on val", "threshold", overlap, False),
        ("False-alarm area on smoke-free images", "threshold", alarms, False),
    ]
    return [curves_svg(title, x, lines, log_y=log) for title, x, lines, log in plots if lines]


def add_line(lines: dict[str, Any], label: str, metrics: list[dict[str, float]], name: str) -> None:
    points = [(line["step"], line[name]) for line in metrics if name in line]
    if points:
        lines[label] = tuple(zip(*points, strict=True))


def plottable(values: list[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def attach(run: Path, report: Path, *, send: bool) -> bool:
    """Lay the page beside the run in MLflow, now or (`send` = False) when the run is synced; True: MLflow has it."""
    config = Run(run).config
    tracker = Tracker(run, experiment=config.tracking.experiment, send=send)
    tracker.artifact(report)
    return tracker.close(None)
