"""An evaluation as text for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from launcher.evaluation.figures import FIGURES, order_figures
from launcher.evaluation.formats import (
    DASH,
    FEW_GROUPS_NOTE,
    FEW_SHOWN,
    NOTHING_FOUND,
    finds_nothing,
    format_figure,
    format_interval,
    format_percent,
    is_few,
    name_class,
    rests_on_few,
)

MARK = "*"
MANY_CLASSES = 10  # more would fill a screen


def format_evaluation(report: Mapping[str, Any], *, every: bool = False) -> str:
    """The headline metrics of the headline's source in percent, at each threshold, how it was made, and why it has no
    tuned threshold or counts fewer images. The row of the headline is marked.

    Args:
        every: show every source.
    """
    dataset, headline = report["dataset"], report["headline"]
    one = name_class([dataset["classes"]])
    lines = [f"{report['run']}: {dataset['images']} images of {dataset['folder']}, metrics in percent"]
    shown = {name: report["sources"][name] for name in report["sources"] if every or name == headline["source"]}
    for source, figures in shown.items():
        for choice in ("fixed", "tuned"):
            if figures[choice] is not None:
                marked = headline == {"source": source, "choice": choice}
                lines.append(f"{MARK if marked else ' '} {source:20s} {format_figures(figures[choice], choice, one)}")
        lines.append(f"    {figures['protocol']}")
        if figures["untuned"]:
            lines.append(f"    no tuned threshold: {figures['untuned']}")
    if others := [name for name in report["sources"] if name not in shown]:
        lines.append(f"  {len(others)} more with --all, and in evaluation.json: {', '.join(others)}")
    if said := describe_labels(report, one):
        lines.append(f"  image labels: {said}")
    if gate := report.get("gate"):
        at = f"class F1 {format_percent(gate['class_f1'])} % at a gate of {gate['tuned']:.2f}"
        lines.append(f"  {at}, chosen on the labels of {gate['tuned_on']}")
    lines += format_classes(report)
    if said := describe_left_out(dataset):
        lines.append(f"  {said}")
    if said := describe_tune(report):
        lines.append(f"  {said}")
    lines += [f"  {said}" for said in describe_best(report)]
    if has_few_groups(report):
        lines.append(f"  {FEW_GROUPS_NOTE}")
    return "\n".join(lines)


def tabulate_classes(evaluation: Mapping[str, Any], only: str | None = None) -> dict[str, Any] | None:
    """The metrics of every class: those of the image labels, and IoU of each source with several classes, at the tuned
    threshold if there is one.

    Args:
        only: the only source whose IoU is wanted.

    Returns:
        {"headings": [...], "rows": [(name, [text, ...]), ...]}; None if there is only one class.
    """
    ious = {
        f"IoU {source}": (figures["tuned"] or figures["fixed"])["class_iou"]
        for source, figures in evaluation["sources"].items()
        if "class_iou" in figures["fixed"] and only in (None, source)
    }
    of_label = evaluation.get("labels", {}).get("classes", {})
    if len(evaluation["dataset"]["classes"]) == 1 or not (ious or of_label):
        return None
    counted = {"AP": "average_precision", "F1": "f1"} if of_label else {}
    rows = []
    for name in ("background", *evaluation["dataset"]["classes"]) if ious else evaluation["dataset"]["classes"]:
        about = of_label.get(name, {})
        cells = [format_percent(of_class[name]) for of_class in ious.values()]
        cells += [format_percent(about.get(figure)) for figure in counted.values()]
        rows.append((name, [*cells, *([str(about.get("images", DASH))] if counted else [])]))
    return {"headings": [*ious, *counted, *(["images"] if counted else [])], "rows": rows}


def format_classes(evaluation: Mapping[str, Any]) -> list[str]:
    """The lines of tabulate_classes for the headline's source; of many classes only the weakest, with a note."""
    table = tabulate_classes(evaluation, evaluation["headline"]["source"])
    if table is None:
        return []
    rows, said = table["rows"], []
    if len(rows) > MANY_CLASSES:

        def first_figure(row: tuple[str, list[str]]) -> float:
            return float("inf") if row[1][0] == DASH else float(row[1][0])

        rows = sorted(rows, key=first_figure)[:MANY_CLASSES]
        said = [f"    (the {MANY_CLASSES} lowest of {len(table['rows'])} classes; all are in evaluation.json)"]
    width, headings = max(len(name) for name, _ in rows), table["headings"]
    lines = []
    for name, cells in [("", headings), *rows]:
        columns = [f"{cell:>{max(len(heading), len('100.0'))}s}" for cell, heading in zip(cells, headings, strict=True)]
        lines.append("  ".join([f"    {name:{width}s}", *columns]))
    return [*lines, *said]


def describe_labels(evaluation: Mapping[str, Any], one: str) -> str:
    """The metrics of the class probabilities in one line; "" if there are none."""
    found = evaluation.get("classification", {})
    figures = order_figures(found).items()
    return ", ".join(format_figure(figure, found[name], one, unit=" %") for name, figure in figures)


def describe_left_out(dataset: Mapping[str, Any]) -> str:
    """How many images are left out of all metrics of maps, and why; "" if none."""
    count = dataset["images_without_truth"]
    what = "their masks are ignored everywhere, or lack the class that the image label names"
    return f"{count} of {dataset['images']} images are left out of all metrics of maps: {what}" if count else ""


def describe_tune(evaluation: Mapping[str, Any]) -> str:
    """A note if thresholds or the gate were chosen on too few images to be trusted, or found nothing; "" otherwise."""
    tune = evaluation.get("tune")
    tuned = {name: figures["tuned"] for name, figures in evaluation["sources"].items() if figures["tuned"]}
    if tune is None or not (tuned or evaluation.get("gate")):
        return ""
    if not rests_on_few(tune):
        nothing = [name for name, figures in tuned.items() if finds_nothing(figures.get("threshold"))]
        said = f"the threshold tuned for {', '.join(nothing)} {NOTHING_FOUND}: the fixed one is used"
        return f"{said}, also in `wsss predict`" if nothing else ""
    return (
        f"tuned values rest on only {tune['images_shown']} images of {tune['folder']} that show a class; with fewer "
        f"than {FEW_SHOWN} they are chance, so the fixed threshold is used, also in `wsss predict`: hold out more"
    )


def describe_best(evaluation: Mapping[str, Any], quoted: tuple[str, str] | None = None) -> list[str]:
    """Which of several sources is best on the tune split, its metric on `val`, and the options that produce it; [] if
    nothing was chosen or found.

    Args:
        quoted: (source, choice) whose metric on `val` is shown beside this and not repeated.
    """
    tune = evaluation.get("tune") or {}
    best, values = tune.get("best"), tune.get("values", {})
    if best is None or len(values) < 2:
        return []
    figure, source = tune["figure"], evaluation["sources"][best]
    choice = "tuned" if source["tuned"] else "fixed"
    at = source[choice]
    if choice == "tuned" and finds_nothing(at.get("threshold")):
        return []
    threshold = f", threshold {at['threshold']:.2f}" if "threshold" in at else ""
    interval = format_interval(at.get(f"{figure}_interval"), groups=at.get(f"{figure}_groups"))
    on_val = f"{format_percent(at.get(figure))} {interval}".rstrip()
    order = sorted(values, key=lambda name: -values[name])
    others = ", ".join(f"{name} {format_percent(values[name])}" for name in order if name != best)
    said = f"{FIGURES[figure].heading} {format_percent(values[best])} there, on val {on_val}"
    lines = [f"best on tune: {best}{threshold}: {said} (the others on tune: {others})"]
    if quoted == (best, choice):
        lines = [f"best on tune, too: {FIGURES[figure].heading} {format_percent(values[best])} there ({others})"]
    if unknown := [name for name in evaluation["sources"] if name not in values]:
        lines.append(f"  not compared, since there are no outputs for tune: {', '.join(unknown)}")
    return [*lines, *filter(None, [ask_for(best, source["chain"], at)])]


def ask_for(name: str, chain: Sequence[Mapping[str, Any]], at: Mapping[str, Any]) -> str:
    """The options that produce the maps and masks of a source; "" for a set with its own settings.

    Args:
        chain: its refiners.
        at: its metrics at the threshold to use.
    """
    kind, refiners = name.partition("+")[0], "+".join(step["name"] for step in chain)
    if "threshold" not in at or "@" in kind or name not in (kind, f"{kind}+{refiners or 'threshold'}"):
        return ""
    empty = "" if chain else " 'refine.chain=[]'"
    chosen = f"'refine.cams=[{kind}]'{empty} refine.threshold={at['threshold']:.2f}"
    predict = f"wsss predict ... --kind {kind}{f' --refine {refiners}' if chain else ''}"
    if refiners not in ("", "crf"):
        return f"  to use it: wsss refine RUN {chosen}"
    return f"  to use it: {predict}; wsss refine RUN {chosen}"


def has_few_groups(evaluation: Mapping[str, Any]) -> bool:
    """Whether an interval of the evaluation rests on few groups."""
    fixed = [figures["fixed"] for figures in evaluation["sources"].values()]
    return any(is_few(at[name]) for at in fixed for name in at if name.endswith("_groups"))


def name_unthresholded(at: Mapping[str, Any]) -> str:
    """What metrics without a threshold were measured on."""
    return "image labels" if "average_precision" in at else "label maps"


def format_figures(at: Mapping[str, Any], choice: str, one: str) -> str:
    """The headline metrics at one threshold, each with its interval or with the reason why it does not exist."""
    threshold = f"threshold {at['threshold']:.2f} ({choice})" if "threshold" in at else name_unthresholded(at)
    parts = []
    for name, figure in order_figures(at).items():
        if figure.headline:
            groups = at.get(f"{name}_groups")
            interval = format_interval(at.get(f"{name}_interval"), groups=groups, digits=2)
            said = format_figure(figure, at[name], one, digits=2)
            parts.append(f"{said} {interval}" if interval else said)
    return f"{threshold:23s}  {', '.join(parts)}"
