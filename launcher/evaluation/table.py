"""The figures of an evaluation as text for the terminal."""

from collections.abc import Mapping
from typing import Any

from launcher.evaluation.figures import format_interval, format_percent, name_class, order_figures

MARK = "*"


def format_evaluation(report: Mapping[str, Any]) -> str:
    """A line per source and threshold with the headline figures in percent, and how each source came about. The figure
    to quote of the run is marked and named at the end."""
    dataset, headline = report["dataset"], report["headline"]
    one = name_class([dataset["classes"]])
    lines = [f"{report['run']}: {dataset['images']} images of {dataset['folder']}, figures in percent"]
    for source, figures in report["sources"].items():
        for choice in ("fixed", "tuned"):
            if figures[choice] is not None:
                marked = headline == {"source": source, "choice": choice}
                lines.append(f"{MARK if marked else ' '} {source:20s} {format_figures(figures[choice], choice, one)}")
        lines.append(f"    {figures['protocol']}")
    lines.append(f"{MARK} the headline of {report['run']}: {headline['source']}, {describe_choice(report, headline)}")
    return "\n".join(lines)


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
            parts.append(f"{figure.heading} {format_percent(at[name], digits=2)}")
            if at[name] is None and figure.absent:
                parts[-1] += f" ({figure.absent.format(one=one)})"
            elif interval := format_interval(at.get(f"{name}_interval"), digits=2):
                parts[-1] += f" {interval}"
    return f"{threshold:23s}  {', '.join(parts)}"
