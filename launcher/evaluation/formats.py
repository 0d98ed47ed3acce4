"""How figures are written: in percent, with intervals, and with the reason where there is none."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from launcher.evaluation.figures import Figure

DASH = "–"
FEW_GROUPS = 20
FEW_SHOWN = 20  # images from which a threshold or a gate is chosen, below which the choice is chance
USELESS = 0.01  # a threshold that so little reaches says that tuning found nothing
NOTHING_FOUND = "is so low that tuning found nothing"
FEW_GROUPS_NOTE = (
    f"Intervals from fewer than {FEW_GROUPS} groups, whose number is given beside them, are too narrow: 95 % intervals "
    "from 8 groups hold the truth 88 to 90 times in 100, from 30 groups 93 to 94 times."
)


def rests_on_few(tune: Mapping[str, Any] | None) -> bool:
    """Whether what was tuned is chance, by what an evaluation says of its split; those of before it was counted do not
    say."""
    return tune is not None and tune["images_shown"] < FEW_SHOWN


def finds_nothing(threshold: float | None) -> bool:
    """Whether a tuned threshold says that no threshold is a good one: nearly the whole image is above it."""
    return threshold is not None and threshold <= USELESS


def name_class(class_sets: Iterable[Sequence[str]]) -> str:
    """What texts call the class: its name where all data sets have that one class, otherwise "the class"."""
    names = {name for classes in class_sets if len(classes) == 1 for name in classes}
    return names.pop().replace("_", " ") if len(names) == 1 else "the class"


def explain_absent(figure: Figure, value: float | None, one: str) -> str:
    """Why a figure does not exist; "" if it does."""
    return figure.absent.format(one=one) if value is None else ""


def format_figure(figure: Figure, value: float | None, one: str, *, digits: int = 1, unit: str = "") -> str:
    """A figure with its heading, in percent, or the reason why it does not exist."""
    reason = explain_absent(figure, value, one)
    return f"{figure.heading} {format_percent(value, digits=digits)}" + (f" ({reason})" if reason else unit)


def format_percent(value: float | None, *, digits: int = 1, signed: bool = False) -> str:
    """A figure in [0, 1] in percent; a dash where it does not exist."""
    if value is None or math.isnan(value):
        return DASH
    return f"{100 * value:{'+' if signed else ''}.{digits}f}"


def format_interval(
    interval: Sequence[float | None] | None, *, groups: int | None = None, digits: int = 1, signed: bool = False
) -> str:
    """Both ends of an interval of a figure, in percent: [low, high]; "" where there is none.

    Args:
        groups: that it was drawn from; said where they are few. One group gives no interval. None: not known.
    """
    if interval is None or any(end is None or math.isnan(end) for end in interval):
        return ""
    if groups == 1:
        return "(1 group: no interval)"
    low, high = (format_percent(end, digits=digits, signed=signed) for end in interval)
    return f"[{low}, {high}]" + (f" of {groups} groups" if is_few(groups) else "")


def is_few(groups: int | None) -> bool:
    """Whether an interval drawn from so many groups is too narrow to be shown without saying so; 0 = there is none."""
    return groups is not None and 0 < groups < FEW_GROUPS
