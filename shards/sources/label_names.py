"""Class names in the rows of a table of labels: in one column, or with one column per class."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from shards.schema import DataError
from shards.sources.text import EMPTY, cell_of, shown

BACKGROUND = "background"  # the label of an image that shows none of the classes
YES = {"1": True, "1.0": True, "true": True, "yes": True, "0": False, "0.0": False, "false": False, "no": False}
SEPARATORS = ",;|/+& "  # between names in tables
Empty = Literal["refuse", "background", "skip"]
Named = dict[str, tuple[Any, tuple[str, ...]]]  # {key: (row, names of its classes)}


def names_by_key(
    rows: Mapping[str, Any],
    where: str,
    classes: Sequence[str] | None,
    label_column: str,
    separator: str,
    empty: Empty,
) -> tuple[Named, int]:
    """The class names of every row, and how many rows were left out because they name nothing."""
    columns = {column for row in rows.values() if isinstance(row, dict) for column in row}
    by_class = label_column not in columns
    if by_class and not (classes and {*classes} <= columns):
        lacking = [one for one in classes or () if one not in columns]
        raise DataError(
            f"{where}: no column '{label_column}'{f', and none of {lacking[:3]}' if lacking else ''}; it has "
            f"{sorted(map(str, columns))}: name the column of labels with --label-column, or one column per class with "
            "--classes"
        )
    named: Named = {}
    for key, row in rows.items():
        place = f"{where}: row '{key}'"
        if not isinstance(row, dict):
            raise DataError(f"{place}: is {shown(row)}; wanted an object with '{label_column}', or a list of names")
        if by_class:
            cells = {one: is_marked(row, one, place, empty) for one in classes or ()}
            found = None if None in cells.values() else tuple(one for one, marked in cells.items() if marked)
        else:
            found = names_in(row, label_column, place, separator)
            if found is None and empty == "refuse":
                raise DataError(
                    f"{place}: {label_column} is empty ({shown(row.get(label_column))}); write '{BACKGROUND}' if it "
                    "shows none of the classes, or say what empty cells mean with --empty background or --empty skip"
                )
        if found is None and empty == "skip":
            continue
        named[key] = (row, found or ())
    if not named:
        raise DataError(f"{where}: none of its {len(rows)} rows has a label")
    return named, len(rows) - len(named)


def is_marked(row: Mapping[str, Any], column: str, place: str, empty: Empty) -> bool | None:
    """Whether the cell of one class says yes; None = leave the row out."""
    if empty != "refuse" and str(row.get(column)).strip().lower() in EMPTY:
        return False if empty == "background" else None
    word = cell_of(row, column, place, "see --classes, --empty").lower()
    if word not in YES:
        raise DataError(f"{place}: {column} is '{row[column]}'; wanted 1/true/yes or 0/false/no")
    return YES[word]


def names_in(row: Mapping[str, Any], column: str, place: str, separator: str) -> tuple[str, ...] | None:
    """The names in a cell: () if it says that there is no class, None if it is empty."""
    cell = row.get(column)
    if isinstance(cell, list):
        if wrong := [one for one in cell if not isinstance(one, str) or not one.strip()]:
            raise DataError(f"{place}: {column} holds {shown(wrong[0])}; wanted names of classes")
        words = [one.strip() for one in cell]
    elif cell is None or str(cell).strip().lower() in EMPTY:
        return None
    else:
        words = [one.strip() for one in cell_of(row, column, place, "see --label-column").split(separator)]
        words = [one for one in words if one]
    found = tuple(dict.fromkeys(one for one in words if one != BACKGROUND))
    if len(found) < len({*words}) and found:
        raise DataError(f"{place}: {column} names '{BACKGROUND}' beside {', '.join(found)}; wanted one or the other")
    return found


def check_names(classes: Sequence[str], counts: Mapping[str, int], where: str, *, drop_others: bool) -> None:
    """Raise DataError for names that are not classes, or that differ only in capital letters."""
    if not classes:
        raise DataError(f"{where}: no label names a class; check --label-column, or name them with --classes")
    same: dict[str, str] = {}
    for one in classes:
        other = same.setdefault(one.casefold(), one)
        if other != one:
            raise DataError(f"{where}: classes '{other}' and '{one}' differ only in capital letters; spell them alike")
    unknown = {one: count for one, count in counts.items() if one not in classes}
    if unknown and not drop_others:
        said = [f"'{one}' in {count}{near(one, classes)}" for one, count in sorted(unknown.items())]
        more = f" and {len(said) - 5} more" if len(said) > 5 else ""
        raise DataError(
            f"{where}: {len(unknown)} names of labels are no class: {', '.join(said[:5])}{more} (the classes: "
            f"{', '.join(classes)}); correct them, add them to --classes, or leave them out of the labels with "
            "--drop-others"
        )


def refuse_joined(counts: Mapping[str, int], where: str) -> None:
    """Raise DataError for a name that consists of several others: with another separator it would be these."""
    for one, count in sorted(counts.items()):
        if between := separator_of(one, counts):
            raise DataError(
                f"{where}: '{one}' in {count} rows looks like several names that other rows have on their own; give "
                f"--separator '{between}', or list the names that are classes with --classes"
            )


def separator_of(name: str, classes: Iterable[str]) -> str:
    """The separator between class names of which a name consists; "" if it does not consist of any."""
    known = {*classes, BACKGROUND} - {name}
    for between in SEPARATORS:
        if between in name and {part.strip() for part in name.split(between)} <= known:
            return between
    return ""


def near(one: str, classes: Sequence[str]) -> str:
    if between := separator_of(one, classes):
        return f" (several names? --separator '{between}')"
    found = difflib.get_close_matches(one, classes, n=1)
    return f" (did you mean '{found[0]}'?)" if found else ""
