"""How metrics are written: in percent, with intervals, or why there is no value."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from launcher.evaluation.figures import Figure

DASH = "–"
FEW_GROUPS = 20
FEW_SHOWN = 20  # images; a threshold or gate chosen on fewer is chance
USELESS = 0.01  # a tuned threshold up to this means that tuning found nothing
NOTHING_FOUND = "is so low that tuning found nothing"
FEW_GROUPS_NOTE = (
    f"Intervals from fewer than {FEW_GROUPS} groups, whose number is given beside them, are too narrow: 95 % intervals "
    "from 8 groups contain the true value 88 to 90 times in 100, from 30 groups 93 to 94 times."
)


def rests_on_few(tune: Mapping[str, Any] | None) -> bool:
    """Whether tuning rests on too few images, by what an evaluation says about its tune split; None: nothing was
    tuned."""
    return tune is not None and tune["images_shown"] < FEW_SHOWN


def finds_nothing(threshold: float | None) -> bool:
    """Whether a tuned threshold is so low that nearly the whole image is above it, so no threshold is good."""
    return threshold is not None and threshold <= USELESS


def name_class(class_sets: Iterable[Sequence[str]]) -> str:
    """What texts call the class: its name if all data sets have only this class, otherwise "the class"."""
    names = {name for classes in class_sets if len(classes) == 1 for name in classes}
    return names.pop().replace("_", " ") if len(names) == 1 else "the class"


def explain_absent(figure: Figure, value: float | None, one: str) -> str:
    """Why a metric does not exist; "" if it does."""
    return figure.absent.format(one=one) if value is None else ""


def format_figure(figure: Figure, value: float | None, one: str, *, digits: int = 1, unit: str = "") -> str:
    """A metric with its heading, in percent, or the reason why it does not exist."""
    reason = explain_absent(figure, value, one)
    return f"{figure.heading} {format_percent(value, digits=digits)}" + (f" ({reason})" if reason else unit)


def format_percent(value: float | None, *, digits: int = 1, signed: bool = False) -> str:
    """A value in [0, 1] in percent; a dash if there is none."""
    if value is None or math.isnan(value):
        return DASH
    return f"{100 * value:{'+' if signed else ''}.{digits}f}"


def format_interval(
    interval: Sequence[float | None] | None, *, groups: int | None = None, digits: int = 1, signed: bool = False
) -> str:
    """An interval in percent: [low, high]; "" if there is none.

    Args:
        groups: their number, which is added if it is small. One group gives no interval. None: not known.
    """
    if interval is None or any(end is None or math.isnan(end) for end in interval):
        return ""
    if groups == 1:
        return "(1 group: no interval)"
    low, high = (format_percent(end, digits=digits, signed=signed) for end in interval)
    return f"[{low}, {high}]" + (f" of {groups} groups" if is_few(groups) else "")


def is_few(groups: int | None) -> bool:
    """Whether an interval over this many groups is too narrow to be shown without saying so; 0 = no interval."""
    return groups is not None and 0 < groups < FEW_GROUPS
