"""Runs -> one HTML page: pictures, headlines, curves, metrics with their protocol. The page needs no other file."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from launcher.config.options import Named
from launcher.config.whole import Config
from launcher.errors import RunError
from launcher.evaluation.curves import plot_classes, plot_runs, plot_sources
from launcher.evaluation.figures import FIGURES, get_figure
from launcher.evaluation.formats import format_percent, name_class
from launcher.evaluation.galleries import draw_galleries
from launcher.evaluation.headline import (
    Headline,
    Known,
    explain_degenerate,
    hold_against,
    read_headline,
    require_control,
)
from launcher.evaluation.page import open_template
from launcher.evaluation.pictures import MASK_COLOUR, TRUTH_COLOUR, as_css, class_colour
from launcher.evaluation.protocol import join_options
from launcher.evaluation.rows import collect_notes, describe_columns, tabulate_run
from launcher.evaluation.strip import draw_strip
from launcher.evaluation.table import describe_best, describe_labels, tabulate_classes
from launcher.evaluation.validate import choose_judge
from launcher.files import typed, write_whole
from launcher.run.folder import CONFIG, Run, find_runs
from launcher.tracking.tracker import open_tracker, read_metrics
from wsss.methods import METHODS

REPORT = "report.html"
LookUp = Callable[[Headline], Known]


def write_report(folder: Path, *, control: Path | None = None, look_up: LookUp = lambda headline: Known()) -> Path:
    """Write FOLDER/report.html about the run in it, or about all runs below it.

    Args:
        control: the run that the others are compared with; None = that of `look_up`.
        look_up: a headline -> what a study knows about its run.

    Raises:
        RunError: no run there, or the control, was evaluated.
        Damaged: an evaluation cannot be read.
    """
    against = require_control(control) if control else None
    runs = sorted((Run(run) for run in find_runs(folder)), key=lambda run: run.about["started"])
    evaluated = [(run, headline) for run in runs if (headline := read_headline(run))]
    if not evaluated:
        raise RunError(f"{folder}: no run with metrics in or below it; run `wsss evaluate RUN` first")
    described = []
    for run, headline in evaluated:
        known = look_up(headline)
        described.append(describe_run(run, headline, known._replace(control=against) if against else known))
    page = open_template("launcher.evaluation", "report_template.html").render(
        title=str(folder),
        groups=group_runs(described),
        runs=described,
        left_out=[(run.config.name, name_missing(run)) for run in runs if read_headline(run) is None],
        curves=plot_runs(described),
        sources=plot_sources(described),
        truth_colour=as_css(TRUTH_COLOUR),
        mask_colour=as_css(MASK_COLOUR),
    )
    out = folder / REPORT
    write_whole(out, page)
    answers = True
    for run, _ in evaluated:
        answers = attach(run.folder, out, send=answers)
    return out


def describe_run(run: Run, headline: Headline, known: Known) -> dict[str, Any]:
    """What the page says about one run."""
    evaluation = headline.evaluation
    one = name_class([run.class_set.classes])
    judge = choose_judge(METHODS[run.config.method.name], evaluation["dataset"]["supervision"])
    kinds = judge.known_figures(run.config, run.class_set)
    about: dict[str, Any] = {
        "name": run.config.name,
        "method": describe_method(run.config),
        "config": (run.folder / CONFIG).read_text(),
        "about": run.about,
        "classes": run.class_set.classes,
        "evaluation": evaluation,
        "headline": headline,
        "source": evaluation["sources"][headline.source],
        "card": describe_card(headline, one, known),
        "metrics": read_metrics(run.folder),
        "logged": [(kind, name) for kind, names in kinds.items() for name in names if get_figure(name).leads],
        "class_table": tabulate_classes(evaluation),
        "notes": collect_notes(evaluation, one),
        "classification": describe_labels(evaluation, one),
        "galleries": draw_galleries(run),
        "rows": tabulate_run(evaluation, {"source": headline.source, "choice": headline.choice}, one),
    }
    return {**about, "class_plot": plot_classes(about)}


def describe_card(headline: Headline, one: str, known: Known) -> dict[str, Any]:
    """The headline of a run, and what to compare it with."""
    heading = FIGURES[headline.figure].heading if headline.figure else "no metric"
    labels = headline.evaluation.get("classification", {}).get("average_precision")
    return {
        "value": format_percent(headline.value),
        "interval": headline.interval(),
        "what": f"{heading} of {headline.where()}",
        "degenerate": explain_degenerate(headline.at, one) if headline.value is not None else "",
        "beside": [one_of.words() for one_of in hold_against(headline, one, known)],
        "best": describe_best(headline.evaluation, (headline.source, headline.choice)),
        "labels": "" if headline.figure == "average_precision" else format_percent(labels),
    }


def describe_method(config: Config) -> str:
    """The network, the method with its options in the config, and the schedule, in one line."""
    network = config.model.options.get("timm_name", config.model.name)
    return f"{network}; {describe_named(config.method)}; {config.train.steps} steps"


def describe_named(named: Named) -> str:
    """Its name and the options that are on."""
    on = {name: value for name, value in named.options.items() if not (value is None or value is False)}
    options = join_options(on)
    return f"{named.name} ({options})" if options else named.name


def name_missing(run: Run) -> str:
    """The commands that put a run without an evaluation on the page; the first does only what is missing."""
    makes = "segment" if METHODS[run.config.method.name].segments or "seg" in run.config.cam.kinds else "infer"
    return f"{typed(makes, run.folder)} && {typed('evaluate', run.folder)}"


def group_runs(runs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The runs of each set of classes, which have the same metrics: one table, in words that fit the classes, and the
    strip of the run with the best headline."""
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for run in runs:
        groups.setdefault(tuple(run["classes"]), []).append(run)
    found = []
    for classes, members in groups.items():
        rows = [row for run in members for row in run["rows"]]
        datasets = [run["evaluation"]["dataset"] for run in members]
        said = [f"{d['folder']}, {d['images']} images, fingerprint {d['fingerprint']}" for d in datasets]
        best = max(members, key=lambda run: -1 if run["headline"].value is None else run["headline"].value)
        found.append({
            "classes": classes,
            "legend": [(name, as_css(class_colour(number))) for number, name in enumerate(classes, start=1)],
            "runs": members,
            "columns": describe_columns(classes, rows),
            "datasets": list(dict.fromkeys(said)),
            "best": best,
            "strip": draw_strip(best["headline"]),
        })  # fmt: skip
    return found


def attach(run: Path, report: Path, *, send: bool) -> bool:
    """Send the page to the trackers of the run, now or (`send` = False) when the run is synced; True: it was sent."""
    tracker = open_tracker(run, Run(run).config.tracking, send=send)
    tracker.artifact(report)
    return tracker.close(None)
