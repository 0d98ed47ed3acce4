"""The figures of an evaluation as text for the terminal."""

from collections.abc import Mapping
from typing import Any

from launcher.evaluation.figures import (
    FEW_GROUPS_NOTE,
    format_figure,
    format_interval,
    is_few,
    name_class,
    order_figures,
)

MARK = "*"


def format_evaluation(report: Mapping[str, Any]) -> str:
    """A line per source and threshold with the headline figures in percent, how each source came about, and why it has
    no tuned threshold or counts fewer images. The figure to quote of the run is marked and named at the end."""
    dataset, headline = report["dataset"], report["headline"]
    one = name_class([dataset["classes"]])
    lines = [f"{report['run']}: {dataset['images']} images of {dataset['folder']}, figures in percent"]
    for source, figures in report["sources"].items():
        for choice in ("fixed", "tuned"):
            if figures[choice] is not None:
                marked = headline == {"source": source, "choice": choice}
                lines.append(f"{MARK if marked else ' '} {source:20s} {format_figures(figures[choice], choice, one)}")
        lines.append(f"    {figures['protocol']}")
        if figures["untuned"]:
            lines.append(f"    no tuned threshold: {figures['untuned']}")
    if said := describe_left_out(dataset):
        lines.append(f"  {said}")
    if has_few_groups(report):
        lines.append(f"  {FEW_GROUPS_NOTE}")
    lines.append(f"{MARK} the headline of {report['run']}: {headline['source']}, {describe_choice(report, headline)}")
    return "\n".join(lines)


def describe_left_out(dataset: Mapping[str, Any]) -> str:
    """How many images count in no figure of maps, and why; "" if none."""
    count = dataset.get("images_without_truth", 0)  # evaluations of before it was counted do not say
    what = "their masks are ignored everywhere, or lack the class that the image label names"
    return f"{count} of {dataset['images']} images count in no figure of maps: {what}" if count else ""


def has_few_groups(evaluation: Mapping[str, Any]) -> bool:
    """Whether an interval of the evaluation comes from few groups."""
    fixed = [figures["fixed"] for figures in evaluation["sources"].values()]
    return any(is_few(at[name]) and at[name] for at in fixed for name in at if name.endswith("_groups"))


def describe_choice(report: Mapping[str, Any], headline: Mapping[str, str]) -> str:
    """The threshold of a headline, in words."""
    at = report["sources"][headline["source"]][headline["choice"]]
    if "threshold" not in at:
        return "label maps"
    how = "chosen on the tune split" if headline["choice"] == "tuned" else "as configured"
    return f"threshold {at['threshold']:.2f}, {how}"


def format_figures(at: Mapping[str, Any], choice: str, one: str) -> str:
    """The headline figures at one threshold, each with its interval or with the reason why it does not exist."""
    threshold = f"threshold {at['threshold']:.2f} ({choice})" if "threshold" in at else "label maps"
    parts = []
    for name, figure in order_figures(at).items():
        if figure.headline:
            groups = at.get(f"{name}_groups")
            interval = format_interval(at.get(f"{name}_interval"), groups=groups, digits=2)
            said = format_figure(figure, at[name], one, digits=2)
            parts.append(f"{said} {interval}" if interval else said)
    return f"{threshold:23s}  {', '.join(parts)}"
