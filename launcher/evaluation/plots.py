"""Plots as SVG text for pages: lines, bars, intervals. Their text has the colour of the page's text.

Pages are read on phones and in dark mode: plots are as wide as a phone, their text remains text, and their colours have
a contrast of at least 3:1 on white and on black.
"""

import html
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

COLOURS = ("#3987e5", "#d9691f", "#27986a", "#c44e86", "#8467d7", "#a8861d", "#1f9aa0", "#7f7f7f")
DASHES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (1, 1.4)), (0, (6, 2, 1, 2)), (0, (3, 1)), (0, (9, 3)))
MOST_LINES = 8  # in a plot; more cannot be told apart
INK = "#010203"  # stands for the colour of the page's text
WIDTH_IN, PLOT_IN, ENTRY_IN, BAR_IN = 5.2, 2.6, 0.17, 0.21


class Line(NamedTuple):
    """A line of a plot.

    Attributes:
        colour: number of its colour; None = its place among the lines.
        dash: number of its dash pattern.
        mark: x of a dot on it; None = no dot.
    """

    x: Sequence[float]
    y: Sequence[float]
    colour: int | None = None
    dash: int = 0
    mark: float | None = None

    @property
    def points(self) -> int:
        return sum(math.isfinite(y) for y in self.y)


def plot_lines(
    title: str,
    x_label: str,
    lines: Mapping[str, Line],
    *,
    y_label: str = "",
    log_x: bool = False,
    log_y: bool = False,
    from_zero: bool = False,
) -> str:
    """{name: line} as SVG text. A line of one point is a dot."""
    with figure_of(title, ", ".join(lines), PLOT_IN + ENTRY_IN * len(lines)) as (figure, axes, svg):
        for number, (name, line) in enumerate(lines.items()):
            colour = COLOURS[(number if line.colour is None else line.colour) % len(COLOURS)]
            style = {"color": colour, "linestyle": DASHES[line.dash % len(DASHES)], "linewidth": 1.5}
            axes.plot(line.x, line.y, label=name, marker="o" if line.points == 1 else None, **style)
            if line.mark is not None:
                distances = [abs(x - line.mark) for x in line.x]
                at = distances.index(min(distances))
                axes.plot([line.x[at]], [line.y[at]], marker="o", markersize=6, color=colour)
        axes.set(xlabel=x_label, ylabel=y_label)
        if log_x:
            axes.set_xscale("log")
        if log_y:
            axes.set_yscale("log")
        if from_zero:
            axes.set_ylim(0, None if any(value > 0 for line in lines.values() for value in line.y) else 1)
        axes.grid(alpha=0.25)
        if lines:
            figure.legend(loc="outside lower left", fontsize=8, frameon=False, handlelength=2.6, borderaxespad=0.1)
    return svg[0]


def plot_bars(title: str, bars: Mapping[str, float]) -> str:
    """{name: percent} as SVG text: one bar for each, from top to bottom."""
    with figure_of(title, ", ".join(f"{name} {value:.1f}" for name, value in bars.items()), bars_in(len(bars))) as (
        _,
        axes,
        svg,
    ):
        drawn = axes.barh(list(bars), list(bars.values()), color=COLOURS[0], height=0.7)
        axes.bar_label(drawn, fmt="%.1f", padding=3, fontsize=8)
        axes.set(xlabel="percent", xlim=(0, 112), ylim=(len(bars) - 0.4, -0.6))
        axes.set_xticks(range(0, 101, 20))
        axes.grid(alpha=0.25, axis="x")
    return svg[0]


def plot_intervals(title: str, rows: Mapping[str, tuple[float, float, float]]) -> str:
    """{name: (value, low, high) in percent} as SVG text: a forest plot, with a line at zero."""
    with figure_of(title, ", ".join(f"{name} {row[0]:+.1f}" for name, row in rows.items()), bars_in(len(rows))) as (
        _,
        axes,
        svg,
    ):
        for y, (middle, low, high) in enumerate(rows.values()):
            axes.plot([low, high], [y, y], color=COLOURS[0], linewidth=2.4, solid_capstyle="butt")
            axes.plot([middle], [y], marker="s", markersize=5, color=COLOURS[0])
        axes.axvline(0, color=INK, linewidth=1, linestyle=DASHES[1])
        axes.set(xlabel="percent", ylim=(len(rows) - 0.4, -0.6))
        axes.set_yticks(range(len(rows)), list(rows))
        axes.grid(alpha=0.25, axis="x")
    return svg[0]


def bars_in(rows: int) -> float:
    """Height of a plot with this many rows, in inches."""
    return 0.95 + BAR_IN * rows


@contextmanager
def figure_of(title: str, words: str, height_in: float) -> Iterator[tuple[Any, Any, list[str]]]:
    """A figure, its axes, and a list that holds the SVG text when the block ends.

    Args:
        words: what a screen reader says besides the title.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 9}
    settings |= dict.fromkeys(("axes.spines.top", "axes.spines.right"), False)
    settings |= dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained", facecolor="none")
        axes = figure.add_subplot(facecolor="none")
        axes.set_title(title, fontsize=10, loc="left")
        svg: list[str] = []
        yield figure, axes, svg
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(buffer)
        svg.append(as_part_of_a_page(buffer.getvalue(), title, words))


def as_part_of_a_page(text: str, title: str, words: str) -> str:
    """An SVG file of matplotlib as an element with a title and a label, in the colour of the page's text."""
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)  # the same in every plot of a page, and nothing refers to them
    label = html.escape(f"{title}: {words}" if words else title)
    head, body = text.split(">", 1)
    return f'{head} role="img" aria-label="{label}"><title>{html.escape(title)}</title>{body}'
