"""The tables of a report: a row for each source and threshold of a run, a column for each figure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from launcher.evaluation.figures import Figure, find_figure, order_figures
from launcher.evaluation.formats import (
    DASH,
    FEW_GROUPS_NOTE,
    explain_absent,
    format_interval,
    format_percent,
    name_class,
)
from launcher.evaluation.headline import explain_degenerate, find_leading
from launcher.evaluation.table import describe_left_out, describe_tune, has_few_groups
from wsss.metrics.base import METRICS

CHOSEN = ("oracle_per_image_iou",)  # in the first table, besides the headline metrics


def tabulate_run(evaluation: Mapping[str, Any], headline: Mapping[str, str], one: str) -> list[dict[str, Any]]:
    """The rows of a run; the row of its headline is marked."""
    return [
        {**row, "is_headline": headline == {"source": source, "choice": row["choice"]}}
        for source, figures in evaluation["sources"].items()
        for row in tabulate_source(source, figures, one)
    ]


def tabulate_source(source: str, figures: Mapping[str, Any], one: str) -> list[dict[str, Any]]:
    """One row per threshold choice of a source; metrics in percent, or why there is no value."""
    rows = []
    for choice in ("fixed", "tuned"):
        at = figures[choice]
        if at is None:
            continue
        values = {name: value for name, value in at.items() if find_figure(name)}
        if "best_on_val" in figures:
            values["best_on_val"] = figures["best_on_val"]["per_image_iou"]
            values["oracle_per_image_iou"] = figures["oracle_per_image_iou"]
        known, leading = order_figures(values), find_leading(at)
        rows.append({
            "source": source,
            "choice": choice,
            "protocol": figures["protocol"],
            "threshold": f"{at['threshold']:.2f} {choice}" if "threshold" in at else DASH,
            "interval": format_interval(at.get(f"{leading}_interval"), groups=at.get(f"{leading}_groups")),
            "degenerate": explain_degenerate(at, one),
            "figures": {name: tabulate_figure(known[name], values[name], one) for name in known},
        })  # fmt: skip
    return rows


def tabulate_figure(figure: Figure, value: float | None, one: str) -> dict[str, str]:
    return {"text": format_percent(value), "reason": explain_absent(figure, value, one)}


def describe_columns(classes: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The metrics that any row has, in the order of the table of metrics; those of the first table are `chosen`."""
    columns, one = [], name_class([classes])
    for name, figure in order_figures(name for row in rows for name in row["figures"]).items():
        meaning, chosen = figure.meaning.format(one=one), figure.headline or name in CHOSEN
        columns.append({"name": name, "heading": figure.heading, "meaning": meaning, "chosen": chosen})
    return columns


def collect_notes(evaluation: Mapping[str, Any], one: str) -> list[str]:
    """Why headline metrics and tuned thresholds do not exist (each reason once), which images are left out, which
    metrics of packages are not shown, and what tuned values and intervals are worth."""
    lacking: dict[str, dict[str, None]] = {}
    for source, figures in evaluation["sources"].items():
        for name, figure in order_figures(figures["fixed"]).items():
            if figure.headline and (reason := explain_absent(figure, figures["fixed"][name], one)):
                lacking.setdefault(reason, {})[figure.heading] = None
        if reason := figures.get("untuned"):
            lacking.setdefault(reason, {})[f"tuned threshold of {source}"] = None
    notes = [f"no {', '.join(what)}: {reason}" for reason, what in lacking.items()]
    gone = [one["name"] for one in evaluation.get("metrics", ()) if one["name"] not in METRICS]
    if gone:
        notes.append(f"not shown, since the package that offers them is not installed: {', '.join(gone)}")
    few = FEW_GROUPS_NOTE if has_few_groups(evaluation) else ""
    return [*notes, *filter(None, [describe_left_out(evaluation["dataset"]), describe_tune(evaluation), few])]
