"""A study's runs -> one page: our results, with deviations and intervals, next to the paper's column."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from launcher.errors import RunError
from launcher.evaluation.figures import get_figure
from launcher.evaluation.formats import DASH, FEW_GROUPS_NOTE, format_interval, format_percent, is_few, name_class
from launcher.evaluation.page import open_template
from launcher.evaluation.per_image import write_rows
from launcher.evaluation.plots import plot_intervals
from launcher.files import RUNS, typed, write_whole
from launcher.studies.figures import CHOICES, read_classes, tabulate_study
from launcher.studies.numbers import list_numbers
from launcher.studies.table import Study


class Column(NamedTuple):
    """A column of the table.

    Attributes:
        heading, short: on the page and in a terminal; "" = not shown there.
        cells: one text per row.
        style: CSS class of its cells on the page.
    """

    heading: str
    short: str
    cells: list[str]
    style: str = ""


def list_columns(study: Study, rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """The columns that are not empty: label maps have no tuned threshold, and many data sets have no images without
    their classes."""

    def alarms(choice: str) -> list[str]:
        return [format_percent(row[choice]["false_alarm_area"]) for row in rows]

    cut = any(row.segments is None for row in study.rows)
    measured = " / ".join(dict.fromkeys(get_figure(row.figure).heading for row in study.rows))
    of_fixed = ("fixed threshold", "fixed") if cut else (measured, measured)
    tuned = {row["compared"] for row in rows if row[row["compared"]]["difference"] is not None} == {"tuned"}
    difference = ("tuned − control", "tuned - control") if tuned else ("− control", "- control")
    kept = [
        Column("row", "row", [row["name"] for row in rows]),
        Column("scores", "scores", [row["source"] for row in rows], "text"),
        Column("paper", "paper", [format_percent(row["paper"], digits=2) for row in rows], "paper"),
        Column("seeds", "seeds", [str(len(row["seeds"])) for row in rows]),
        Column(*of_fixed, [format_cell(row, "fixed") for row in rows]),
        Column("false alarms", "alarms", alarms("fixed")),
        Column("tuned threshold", "tuned", [format_cell(row, "tuned") for row in rows]),
        Column("false alarms", "alarms", alarms("tuned")),
        Column(*difference, [format_gap(row, row["compared"]) for row in rows]),
        Column("note", "", [row["note"] for row in rows], "wide"),
        Column("commit", "", [", ".join(row["commits"]) for row in rows], "text quiet"),
    ]
    return [column for column in kept if {*column.cells} - {"", DASH}]


def write_study_report(name: str, study: Study) -> Path:
    """Write RUNS/FOLDER/NAME.html, and its numbers as NAME.csv; returns the path of the page.

    Raises:
        RunError: no row of the study is done yet, or a run is not the one that its name says.
    """
    rows = tabulate_study(study)
    if not any(row["seeds"] for row in rows):
        raise RunError(f"study '{name}': no row is done yet; run it with `{typed('study', 'run', name)}`")
    protocols: dict[str, list[str]] = {}
    for row in rows:
        for protocol in row["protocols"]:
            protocols.setdefault(protocol, []).append(row["name"])
    out = RUNS / study.folder / f"{Path(name).stem}.html"
    numbers = list_numbers(rows)
    page = open_template("launcher.studies", "study_template.html").render(
        name=name,
        numbers=out.with_suffix(".csv").name,
        classes=any(column.startswith("IoU ") for column in numbers[0]) if numbers else False,
        study=study,
        rows=rows,
        columns=list_columns(study, rows),
        meanings=explain_figures(study, rows),
        note=FEW_GROUPS_NOTE if has_few_groups(rows) else "",
        remarks=list_remarks(rows, study.control),
        protocols=protocols,
        forest=plot_differences(study, rows),
    )
    write_whole(out, page)
    write_rows(out.with_suffix(".csv"), numbers)
    return out


def plot_differences(study: Study, rows: Sequence[Mapping[str, Any]]) -> str:
    """The forest plot of differences to the control as SVG text; "" if nothing is compared."""
    found = {row["name"]: gap for row in rows if (gap := row[row["compared"]]["difference"]) is not None}
    percent = {name: tuple(100 * value for value in difference) for name, difference in found.items()}
    tuned = all(row["compared"] == "tuned" for row in rows if row["name"] in found)
    what = "Tuned − control" if tuned else "Difference to the control"
    return plot_intervals(f"{what} ({study.control})", percent) if percent else ""


def format_study(name: str, study: Study) -> str:
    """The table as text, for the terminal and for docs/experiments.md."""
    lines = [f"{name}: {study.title}", "metrics in percent, ± deviation over seeds, [95 % interval over groups]"]
    found = tabulate_study(study)
    columns = [[one.short, *one.cells] for one in list_columns(study, found) if one.short]
    padded = zip(*([cell.ljust(max(map(len, cells))) for cell in cells] for cells in columns), strict=True)
    note = [FEW_GROUPS_NOTE] if has_few_groups(found) else []
    note += list_remarks(found, study.control)
    return "\n".join([*lines, *("  " + "  ".join(cells).rstrip() for cells in padded), *note])


def list_remarks(rows: Sequence[Mapping[str, Any]], control: str | None) -> list[str]:
    """Remarks below the table."""
    return [*filter(None, (name_by_seed(rows, control), name_mixed(rows), name_apart(rows, control)))]


def name_by_seed(rows: Sequence[Mapping[str, Any]], control: str | None) -> str:
    """A line with the differences to the control, seed by seed, for rows whose metric is not a mean over images; "" if
    there are none."""
    said = []
    for row in rows:
        choice = "tuned" if row["tuned"]["by_seed"] else "fixed"
        if gaps := row[choice]["by_seed"]:
            of_seeds = ", ".join(format_percent(gap, signed=True) for _, gap in sorted(gaps.items()))
            mean = format_percent(sum(gaps.values()) / len(gaps), signed=True)
            said.append(f"{row['name']} {mean} ({of_seeds})")
    return f"Difference to {control}, mean (seed by seed): {'; '.join(said)}" if said else ""


def format_cell(row: Mapping[str, Any], choice: str) -> str:
    """Mean ± deviation over seeds [interval], and the number of seeds if not all have the metric."""
    at = row[choice]
    deviation = "" if at["deviation"] is None else f"± {format_percent(at['deviation'])}"
    interval = format_interval(at["interval"], groups=at["groups"])
    some = 0 < at["seeds"] < len(row["seeds"])
    of_seeds = f"({at['seeds']} of {len(row['seeds'])} seeds)" if some else ""
    return " ".join(filter(None, (format_percent(at["mean"]), deviation, interval, of_seeds)))


def format_gap(row: Mapping[str, Any], choice: str) -> str:
    """Mean difference to the control [interval], with signs."""
    difference: Sequence[float] | None = row[choice]["difference"]
    if difference is None:
        return DASH
    interval = format_interval(difference[1:], groups=row[choice]["groups"], signed=True)
    return f"{format_percent(difference[0], signed=True)} {interval}"


def name_mixed(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line that names rows whose runs differ in more than their seed; "" if there are none."""
    mixed = [f"{row['name']}: {' | '.join(row['protocols'])}" for row in rows if len(row["protocols"]) > 1]
    return f"Means over runs that differ in their protocol: {'; '.join(mixed)}" if mixed else ""


def name_apart(rows: Sequence[Mapping[str, Any]], control: str | None) -> str:
    """A line that names rows evaluated on other images than the control; "" if there are none."""
    apart = ", ".join(row["name"] for row in rows if row["apart"])
    said = f"Evaluated on other images than the control {control}, so not compared with it"
    return f"{said}: {apart}; evaluate them on the same" if apart else ""


def has_few_groups(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether an interval of a row rests on few groups."""
    return any(is_few(row[choice]["groups"]) for row in rows for choice in CHOICES)


def explain_figures(study: Study, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """{heading: meaning} of the metrics of the rows, and of the false-alarm area if a row has one."""
    one = name_class(read_classes(study))
    names = dict.fromkeys(row.figure for row in study.rows)
    if any(row[choice]["false_alarm_area"] is not None for row in rows for choice in CHOICES):
        names["false_alarm_area"] = None
    figures = [get_figure(name) for name in names]
    return {figure.heading: figure.meaning.format(one=one) for figure in figures}
