"""A run's losses and mIoU next to ToCo's published training logs, at the same steps.

It shows early that a run departs from the published one, long before the final metrics do.
"""

from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml

from launcher.errors import RunError
from launcher.evaluation.page import open_template
from launcher.evaluation.plots import Line, plot_lines
from launcher.files import write_whole
from launcher.run.folder import Run
from launcher.tracking.tracker import read_metrics

LogName = Literal["voc", "coco"]
PERCENT = {"val/cam/miou": 0, "val/aux_cam/miou": 1, "val/seg/miou": 2}  # our metric -> column of `miou`
LOSSES = {f"train/{name}_loss": n for n, name in enumerate(("cls", "cls_aux", "ptc", "ctc", "seg"))}


def read_log(log: LogName) -> dict[str, Any]:
    """ToCo's published log of one data set: {what, miou: {step: [...]}, losses: {step: [...]}}."""
    return yaml.safe_load(files("launcher.studies").joinpath("toco_logs.yaml").read_text())[log]


def compare_with_log(run: Path, log: LogName) -> dict[str, list[tuple[int, float, float | None]]]:
    """{metric: [(step, published, ours)]}; ours is None at steps that the run has not logged. mIoU in percent.

    Raises:
        RunError: the run has logged nothing.
    """
    ours: dict[str, dict[int, float]] = {}
    for line in read_metrics(run):
        for name, value in line.items():
            ours.setdefault(name, {})[int(line["step"])] = value
    if not ours:
        raise RunError(f"{run}: nothing is logged here yet; start the run with `wsss train`")
    logs = read_log(log)
    found: dict[str, list[tuple[int, float, float | None]]] = {}
    for columns, table, factor in ((PERCENT, logs["miou"], 100), (LOSSES, logs["losses"], 1)):
        for metric, column in columns.items():
            at = ours.get(metric, {})
            found[metric] = [
                (step, values[column], factor * at[step] if step in at else None) for step, values in table.items()
            ]
    return found


def format_trajectory(run: Path, log: LogName) -> str:
    """One line per step and metric that both have."""
    lines = [
        f"{run} next to ToCo's log ({read_log(log)['what']})",
        f"{'':20s} {'step':>6s} {'ToCo':>8s} {'ours':>8s}",
    ]
    for metric, points in compare_with_log(run, log).items():
        lines += [
            f"{metric:20s} {step:6d} {theirs:8.3f} {mine:8.3f}" for step, theirs, mine in points if mine is not None
        ]
    if len(lines) == 2:
        lines.append("no step of the log is reached yet, or train.log_every and train.eval_every miss them")
    return "\n".join(lines)


def write_trajectory(run: Path, log: LogName) -> Path:
    """Write RUN/trajectory.html, one plot per metric with ToCo's points and the run's; returns its path."""
    config = Run(run).config
    points_of = compare_with_log(run, log)
    plots = []
    for metric, points in points_of.items():
        of_run = [(line["step"], line[metric]) for line in read_metrics(run) if metric in line]
        factor = 100 if metric in PERCENT else 1
        lines = {"ToCo": Line([float(p[0]) for p in points], [p[1] for p in points])}
        lines[config.name] = Line([float(step) for step, _ in of_run], [factor * value for _, value in of_run])
        unit = "percent" if metric in PERCENT else ""
        plots.append(plot_lines(metric, "step", lines, y_label=unit, log_y=metric in LOSSES))
    out = run / "trajectory.html"
    page = open_template("launcher.studies", "trajectory_template.html").render(
        title=f"{config.name} next to ToCo's log",
        what=read_log(log)["what"],
        plots=plots,
        table=format_trajectory(run, log),
    )
    write_whole(out, page)
    return out
