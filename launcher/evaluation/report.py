"""Runs -> one HTML page: figures with their protocol, curves, overlays. The page needs no other file."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from launcher.config.options import Named
from launcher.config.sections import Config
from launcher.errors import RunError
from launcher.evaluation.curves import plot_runs
from launcher.evaluation.figures import FIGURES, Figure, find_figure, order_figures, pick_headline
from launcher.evaluation.formats import (
    DASH,
    FEW_GROUPS_NOTE,
    explain_absent,
    format_interval,
    format_percent,
    name_class,
)
from launcher.evaluation.galleries import draw_galleries
from launcher.evaluation.pictures import class_colours
from launcher.evaluation.protocol import join_options
from launcher.evaluation.table import describe_labels, describe_left_out, has_few_groups, tabulate_classes
from launcher.evaluation.validate import choose_judge
from launcher.files import read_json, write_whole
from launcher.run.folder import CONFIG, EVALUATION, Run, find_runs
from launcher.tracking.tracker import open_tracker, read_metrics
from wsss.methods import METHODS

REPORT = "report.html"


def write_report(folder: Path) -> Path:
    """Write FOLDER/report.html about the run in it, or about all runs below it.

    Raises:
        RunError: no run with an evaluation there.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    runs = [run for run in find_runs(folder) if (run / EVALUATION).is_file()]
    if not runs:
        raise RunError(f"{folder}: no run with figures in or below it; run `wsss evaluate RUN` first")
    runs.sort(key=lambda run: Run(run).about["started"])
    described = [describe_run(run) for run in runs]
    environment = Environment(
        loader=PackageLoader("launcher.evaluation", "."),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
    )
    page = environment.get_template("report_template.html").render(
        title=str(folder),
        written=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        groups=group_runs(described),
        runs=described,
        curves=plot_runs(described),
        galleries=draw_galleries(runs),
    )
    out = folder / REPORT
    write_whole(out, page)
    answers = True
    for run in runs:
        answers = attach(run, out, send=answers)
    return out


def describe_run(folder: Path) -> dict[str, Any]:
    """What the page says of one run."""
    run = Run(folder)
    evaluation = read_json(folder / EVALUATION)
    sources = evaluation["sources"]
    headline = evaluation.get("headline") or pick_headline(sources, run.config.cam.kinds)
    one = name_class([run.class_set.classes])
    supervision = evaluation["dataset"].get("supervision", "pixel")  # of before it was said: with masks
    kinds = choose_judge(METHODS[run.config.method.name], supervision).known_figures(run.config, run.class_set)
    return {
        "name": run.config.name,
        "method": describe_method(run.config),
        "config": (folder / CONFIG).read_text(),
        "about": run.about,
        "classes": run.class_set.classes,
        "evaluation": evaluation,
        "metrics": read_metrics(folder),
        "logged": [(kind, name) for kind, names in kinds.items() for name in names if FIGURES[name].leads],
        "class_table": tabulate_classes(evaluation),
        "notes": collect_notes(evaluation, one),
        "classification": describe_labels(evaluation, one),
        "rows": [
            {**row, "run": run.config.name, "is_headline": headline == {"source": source, "choice": row["choice"]}}
            for source, figures in sources.items()
            for row in tabulate_source(source, figures, one)
        ],
    }


def collect_notes(evaluation: Mapping[str, Any], one: str) -> list[str]:
    """Why headline figures and tuned thresholds do not exist, each reason once, which images count nowhere, and
    what intervals are worth."""
    lacking: dict[str, dict[str, None]] = {}
    for source, figures in evaluation["sources"].items():
        for name, figure in order_figures(figures["fixed"]).items():
            if figure.headline and (reason := explain_absent(figure, figures["fixed"][name], one)):
                lacking.setdefault(reason, {})[figure.heading] = None
        if reason := figures.get("untuned"):
            lacking.setdefault(reason, {})[f"tuned threshold of {source}"] = None
    notes = [f"no {', '.join(what)}: {reason}" for reason, what in lacking.items()]
    few = FEW_GROUPS_NOTE if has_few_groups(evaluation) else ""
    return [*notes, *filter(None, [describe_left_out(evaluation["dataset"]), few])]


def describe_method(config: Config) -> str:
    """The network, the method with the options that the config gives it, and the schedule, in one line."""
    network = config.model.options.get("timm_name", config.model.name)
    return f"{network}; {describe_named(config.method)}; {config.train.steps} steps"


def describe_named(named: Named) -> str:
    """Its name and the options that are on."""
    on = {name: value for name, value in named.options.items() if not (value is None or value is False)}
    options = join_options(on)
    return f"{named.name} ({options})" if options else named.name


def group_runs(runs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The runs of each set of classes, which share their figures: one table, in words that fit the classes."""
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for run in runs:
        groups.setdefault(tuple(run["classes"]), []).append(run)
    found = []
    for classes, members in groups.items():
        rows = [row for run in members for row in run["rows"]]
        datasets = [run["evaluation"]["dataset"] for run in members]
        said = [f"{d['folder']}, {d['images']} images, fingerprint {d['fingerprint']}" for d in datasets]
        found.append({
            "classes": classes,
            "legend": [(name, name_colour(number)) for number, name in enumerate(classes, start=1)],
            "runs": members,
            "columns": describe_columns(classes, rows),
            "headlines": [row for row in rows if row["is_headline"]],
            "datasets": list(dict.fromkeys(said)),
        })  # fmt: skip
    return found


def name_colour(class_id: int) -> str:
    """The colour of a class in pictures, as HTML writes it."""
    return "#" + bytes(class_colours()[class_id].astype("uint8")).hex()


def describe_columns(classes: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The figures that any row has, in the order of the table of figures."""
    columns, one = [], name_class([classes])
    for name, figure in order_figures(name for row in rows for name in row["figures"]).items():
        meaning = figure.meaning.format(one=one)
        columns.append({"name": name, "heading": figure.heading, "meaning": meaning, "headline": figure.headline})
    return columns


def tabulate_source(source: str, figures: Mapping[str, Any], one: str) -> list[dict[str, Any]]:
    """One row per threshold choice of a source; its figures are in percent, each with the reason if there is none."""
    rows = []
    for choice in ("fixed", "tuned"):
        at = figures[choice]
        if at is None:
            continue
        values = {name: value for name, value in at.items() if find_figure(name)}
        if "best_on_val" in figures:
            values["best_on_val"] = figures["best_on_val"]["per_image_iou"]
            values["oracle_per_image_iou"] = figures["oracle_per_image_iou"]
        known = order_figures(values)
        leading = next((name for name, figure in known.items() if figure.leads), None)
        rows.append({
            "source": source,
            "choice": choice,
            "protocol": figures["protocol"],
            "threshold": f"{at['threshold']:.2f}" if "threshold" in at else DASH,
            "interval": format_interval(at.get(f"{leading}_interval"), groups=at.get(f"{leading}_groups")),
            "figures": {name: tabulate_figure(known[name], values[name], one) for name in known},
        })  # fmt: skip
    return rows


def tabulate_figure(figure: Figure, value: float | None, one: str) -> dict[str, str]:
    return {"text": format_percent(value), "reason": explain_absent(figure, value, one)}


def attach(run: Path, report: Path, *, send: bool) -> bool:
    """Send the page to where the run is tracked, now or (`send` = False) when the run is synced; True: it is there."""
    tracker = open_tracker(run, Run(run).config.tracking, send=send)
    tracker.artifact(report)
    return tracker.close(None)
