"""A study's table as numbers in [0, 1], for a paper's own tables and plots."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from launcher.studies.figures import CHOICES, mean


def list_numbers(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The lines of NAME.csv: for each row and threshold choice, one for the `mean` over its seeds, and one per seed.

    `value` is the row's metric, `at` the threshold, and `IoU NAME` the IoU of a class if there are several. The line of
    the mean also has the deviation over seeds, the interval (low, high), the paper's number, and the difference to the
    control, with its interval if it has one.

    Args:
        rows: see tabulate_study.
    """
    lines = [line for row in rows for choice in CHOICES if row[choice]["of_seed"] for line in lines_of(row, choice)]
    names = dict.fromkeys(name for line in lines for name in line)
    return [{name: line.get(name) for name in names} for line in lines]


def lines_of(row: Mapping[str, Any], choice: str) -> Iterator[dict[str, Any]]:
    """The lines of one row and threshold choice."""
    numbers, of_seed = row[choice], row[choice]["of_seed"]
    head = {"row": row["name"], "source": row["source"], "metric": row["figure"], "threshold": choice}
    low, high = numbers["interval"] or (None, None)
    gap, gap_low, gap_high = numbers["difference"] or (mean([*numbers["by_seed"].values()]), None, None)
    classes = dict.fromkeys(name for one in of_seed.values() for name in one["classes"])
    yield {
        **head,
        "seed": "mean",
        "at": None,
        "value": numbers["mean"],
        "deviation": numbers["deviation"],
        "low": low,
        "high": high,
        "difference": gap,
        "difference_low": gap_low,
        "difference_high": gap_high,
        "false_alarm_area": numbers["false_alarm_area"],
        "paper": row["paper"],
        **{f"IoU {name}": mean(values_of(name, of_seed)) for name in classes},
    }
    for seed, one in of_seed.items():
        of_classes = {f"IoU {name}": iou for name, iou in one["classes"].items()}
        of_one = {"at": one["at"], "value": one["value"], "false_alarm_area": one["alarms"]}
        yield {**head, "seed": seed, **of_one, "difference": numbers["by_seed"].get(seed), **of_classes}


def values_of(name: str, of_seed: Mapping[int, Mapping[str, Any]]) -> list[float]:
    """The IoU of a class for every seed that has one."""
    found = (one["classes"].get(name) for one in of_seed.values())
    return [value for value in found if value is not None]
