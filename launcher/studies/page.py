"""A study's runs -> one page: ours, with what it is worth, beside the paper's column."""

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from launcher.errors import RunError
from launcher.files import RUNS, write_whole
from launcher.studies.figures import table
from launcher.studies.table import Study


def write_study_report(name: str, study: Study) -> Path:
    """Write RUNS/FOLDER/NAME.html; returns its path.

    Raises:
        RunError: nothing of the study is done yet.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    rows = table(study)
    if not any(row["seeds"] for row in rows):
        raise RunError(f"study '{name}': no row is done yet; run it with `wsss study run {name}`")
    environment = Environment(
        loader=PackageLoader("launcher.studies", "."), autoescape=select_autoescape(["html"]), undefined=StrictUndefined
    )
    page = environment.get_template("study_template.html").render(
        name=name, study=study, rows=rows, written=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    )
    out = RUNS / study.folder / f"{name}.html"
    write_whole(out, page)
    return out


def as_text(name: str, study: Study) -> str:
    """The table in a terminal, and as it is put into docs/experiments.md."""
    lines = [f"{name}: {study.title}", "figures in percent, ± deviation over seeds, [95 % interval over groups]"]
    header = ("row", "scores", "paper", "seeds", "fixed", "alarms", "tuned", "alarms", "tuned - control")
    rows = [header]
    for row in table(study):
        rows.append((
            row["name"], row["source"], shown(row["paper"]), str(len(row["seeds"])),
            with_interval(row["fixed"]), shown(row["fixed"]["false_alarm_area"]),
            with_interval(row["tuned"]), shown(row["tuned"]["false_alarm_area"]),
            gap(row["tuned"]["difference"]),
        ))  # fmt: skip
    widths = [max(len(cells[n]) for cells in rows) for n in range(len(header))]
    padded = [[cell.ljust(width) for cell, width in zip(cells, widths, strict=True)] for cells in rows]
    return "\n".join([*lines, *("  " + "  ".join(cells).rstrip() for cells in padded)])


def shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def with_interval(at: dict[str, Any]) -> str:
    if at["mean"] is None:
        return "–"
    deviation = "" if at["deviation"] is None else f" ± {at['deviation']:.1f}"
    interval = "" if at["interval"] is None else f" [{at['interval'][0]:.1f}, {at['interval'][1]:.1f}]"
    return f"{at['mean']:.1f}{deviation}{interval}"


def gap(difference: tuple[float, float, float] | None) -> str:
    return "–" if difference is None else "{:+.1f} [{:+.1f}, {:+.1f}]".format(*difference)
