"""Tables, lists and json from other tools; an error names file and row, what was got and what was wanted.

Text is UTF-8, with or without the mark that Windows puts in front, and with the line ends of any system. A csv has a
header; its columns are separated by commas, or by semicolons or tabs if only these give a column `key` or `image`.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shards.schema import DataError
from shards.sources.archives import Blob
from shards.sources.names import Names, last_of, plain

SHOWN = 60  # characters of a wrong value in a message
KEY_COLUMNS = ("key", "image")
SPLIT = "split"  # the column that names the split of a row
EMPTY = ("", "nan", "none", "null")  # what tools write into a cell without a value


def read_bytes(path: Path) -> bytes:
    """The bytes of a file. Raises DataError if it does not exist or cannot be read."""
    if not path.is_file():
        raise DataError(f"{path}: file is missing")
    return Blob(str(path)).read()


def table_at(root: Path, path: Path | str, *, folders: bool = False) -> Path:
    """The path of a table of labels or keys: below the root of the images, else below the working folder.

    Args:
        folders: whether it may be a folder of annotations.

    Raises:
        DataError: it exists at neither place.
    """
    places = [root / path, Path(path)]
    found = [place for place in places if place.is_file() or (folders and place.is_dir())]
    if not found:
        if folder := next((place for place in places if place.is_dir()), None):
            raise DataError(f"{folder}: is a folder; wanted a file: a table of labels or a list of names")
        raise DataError(
            f"{places[0]}: file is missing; {path} is neither below the root of the images nor in the working folder"
        )
    return found[0]


def text_of(data: bytes, where: str) -> str:
    """Bytes of a text file -> text. Raises DataError unless they are UTF-8."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data:
        raise DataError(f"{where}: is UTF-16 or not text; wanted UTF-8: save it again as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{where}: line {line}: byte 0x{data[error.start]:02x} is not UTF-8; save the file again as UTF-8"
        ) from error
    if "\ufeff" in text:
        line = text.count("\n", 0, text.index("\ufeff")) + 1
        raise DataError(
            f"{where}: line {line}: a byte order mark inside the text, as when two files were joined; remove it"
        )
    return text


def names_of(data: bytes, where: str) -> list[str]:
    """The lines of a list of names, without empty ones. Raises DataError for no name, or a name listed twice."""
    names = [line.strip() for line in re.split(r"\r\n|\n|\r", text_of(data, where)) if line.strip()]
    if not names:
        raise DataError(f"{where}: lists no name; wanted one per line")
    check_different(names, where)
    return names


def check_different(names: Iterable[str], where: str) -> None:
    """Raise DataError if two names are equal, or differ only in how their letters are composed."""
    seen: dict[str, str] = {}
    for name in names:
        form = plain(name)
        if form in seen:
            also = f" (also as {seen[form]!a})" if seen[form] != name else ""
            raise DataError(f"{where}: '{name}' is listed twice{also}; remove one of its rows")
        seen[form] = name


def json_of(data: bytes, where: str) -> Any:
    """A json file's content. Raises DataError if it is not json, or if an object has a key twice."""
    text = text_of(data, where)
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: object_of(pairs, where))
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not json ({str(error) or type(error).__name__})") from error


def object_of(pairs: Sequence[tuple[str, Any]], where: str) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        check_different((key for key, _ in pairs), where)
    return content


def read_rows(path: Path) -> list[tuple[str, Any]]:
    """(key, row) of each row of a csv or json table; a csv's row is {column: cell}, its key is in `key`, else `image`.

    A json is a list of such rows or an object {key: row}, bare or under "items"; its rows may be anything.

    Raises:
        DataError: unreadable, malformed, no row, a row without a key, or a key twice.
    """
    data, where = read_bytes(path), str(path)
    if path.suffix.lower() == ".json":
        return rows_of_json(json_of(data, where), where)
    lines = csv_rows(text_of(data, where), where)
    return checked_rows([(key_of_row(row, f"{where}: line {number}"), row) for number, row in lines], where)


def rows_of_json(content: Any, where: str) -> list[tuple[str, Any]]:
    """The rows of a json table, see read_rows."""
    if isinstance(content, dict) and "items" in content:
        content = content["items"]
        if not isinstance(content, dict):
            raise DataError(f"{where}: its 'items' are {shown(content)}; wanted an object {{key: row}}")
    if not isinstance(content, (dict, list)):
        raise DataError(f"{where}: holds {shown(content)}; wanted a list of rows or an object {{key: row}}")
    if isinstance(content, dict):
        return checked_rows(list(content.items()), where)
    return checked_rows([(key_of_row(row, f"{where}: row {number}"), row) for number, row in enumerate(content)], where)


def checked_rows(rows: list[tuple[str, Any]], where: str) -> list[tuple[str, Any]]:
    """The rows unchanged. Raises DataError for no row, or a key twice."""
    if not rows:
        raise DataError(f"{where}: holds no row; wanted one for each image")
    for key, _ in rows:
        check_writable(key, where)
    check_different((key for key, _ in rows), where)
    return rows


def select_rows(
    rows: dict[str, Any], where: Path, *, only: Path | None, split: str, column: str | None
) -> dict[str, Any]:
    """The rows of a split: those that a list names, else those whose cell in a column says so, else all.

    Args:
        only: see listed_rows.
        column: COLUMN, whose cells are names of splits, or COLUMN=NAME if the table calls this split NAME.

    Raises:
        DataError: both a list and a column; see listed_rows and rows_of_split; or neither, although a column `split`
            says anything but this split.
    """
    if only is not None and column is not None:
        raise DataError(f"--list {only} and --split-column {column} both say which rows to take; give one")
    if only is not None:
        return listed_rows(rows, only, where)
    if column is not None:
        return rows_of_split(rows, where, *((column, split) if "=" not in column else column.split("=", 1)))
    said = Counter(str(row.get(SPLIT, "") if isinstance(row, dict) else "").strip() for row in rows.values())
    if set(said) != {split} and any(name.lower() not in EMPTY for name in said):
        column = SPLIT if split in said else f"{SPLIT}=NAME"
        raise DataError(
            f"{where}: its column '{SPLIT}' says {counted(said)}; wanted only '{split}': take the rows of one of them "
            f"with --split-column {column}, or all after that column has another name"
        )
    return rows


def rows_of_split(rows: dict[str, Any], where: Path, column: str, name: str) -> dict[str, Any]:
    """The rows whose cell in a column is this name. Raises DataError if a cell is empty, or there are no such rows."""
    of_key = {key: cell_of(row, column, f"{where}: row '{key}'", "see --split-column") for key, row in rows.items()}
    if name not in of_key.values():
        raise DataError(
            f"{where}: its column '{column}' says {counted(Counter(of_key.values()))}, and nowhere '{name}'; say "
            f"--split-column {column}=NAME with one of these"
        )
    return {key: rows[key] for key, said in of_key.items() if said == name}


def counted(said: Counter[str]) -> str:
    """`train in 150 rows, val in 60 rows`, the most frequent first."""
    more = [f"{len(said) - 5} more"] if len(said) > 5 else []
    return ", ".join([*(f"{shown(name)} in {rows} rows" for name, rows in said.most_common(5)), *more])


def listed_rows(rows: dict[str, Any], only: Path, where: Path) -> dict[str, Any]:
    """The rows whose keys a text file lists, one per line, in its order.

    A name may lack the image ending that its key has, as in VOC's lists.

    Raises:
        DataError: the list is missing, or names a key that no row has, that is ambiguous, or that it names twice.
    """
    listed, keys = names_of(read_bytes(only), str(only)), Names({key: key for key in rows}, str(where))
    found = {name: keys.find(name, str(only)) for name in listed}
    if unknown := [name for name, key in found.items() if key is None]:
        near = Names(keys.files, keys.place, anywhere=True).find(last_of(unknown[0]), str(only))
        meant = f"did you mean '{near}'?" if near else f"the first of the table is '{next(iter(rows))}'"
        raise DataError(f"{only}: {len(unknown)} keys are not in {where}, first '{unknown[0]}'; {meant}")
    chosen = [key for key in found.values() if key is not None]
    check_different(chosen, str(only))
    return {key: rows[key] for key in chosen}


def key_of_row(row: Any, where: str) -> str:
    if not isinstance(row, dict):
        raise DataError(f"{where}: is {shown(row)}; wanted an object with 'key' or 'image', 'label' and 'group'")
    found = next((row[name] for name in KEY_COLUMNS if row.get(name) not in (None, "")), None)
    if found is None and not {*KEY_COLUMNS} & row.keys():
        raise DataError(
            f"{where}: neither 'key' nor 'image' among its columns {sorted(map(str, row))}; call the column of paths "
            "'image' (the first line of a csv names its columns)"
        )
    if found is None:
        raise DataError(f"{where}: its 'key' or 'image' is empty; fill it in or remove the row")
    if not isinstance(found, str):
        raise DataError(f"{where}: its key is {shown(found)}; wanted text, the name of a file")
    return found


def check_writable(text: str, where: str) -> None:
    """Raise DataError if text holds half a character, such as json's \\ud800, which no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: {shown(text)} holds half a character; write it again") from error


def csv_rows(text: str, where: str) -> list[tuple[int, dict[str, str]]]:
    """(line, {column: cell}) of each row; empty rows are left out."""
    first = next((line for line in re.split(r"\r\n|\n|\r", text) if line.strip()), "")

    def columns_at(delimiter: str) -> set[str]:
        return {cell.strip(" \t\"'") for cell in first.split(delimiter)}

    if not first:
        raise DataError(f"{where}: is empty; wanted a csv with a header")
    delimiter = next((one for one in ",;\t" if columns_at(one) & {*KEY_COLUMNS}), None)
    if delimiter is None:
        raise DataError(
            f"{where}: neither 'key' nor 'image' among the columns of its first line, {shown(first)}; call the column "
            "of paths 'image', in small letters (the first line of a csv names its columns, with commas, semicolons or "
            "tabs between them)"
        )
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise DataError(f"{where}: line {reader.line_num}: {error}; wanted a csv with a header") from error
    header = lines[0][1]
    if len(set(header)) < len(header):
        raise DataError(f"{where}: two columns of its header have the same name: {header}; rename one")
    for number, row in lines[1:]:
        if len(row) != len(header):
            raise DataError(
                f"{where}: line {number}: {len(row)} cells ({shown(row)}); the header has {len(header)}: {header}; put "
                "names with a comma in quotes"
            )
    return [(number, dict(zip(header, row, strict=True))) for number, row in lines[1:]]


def cell_of(row: Mapping[str, Any], column: str, where: str, hint: str) -> str:
    """A cell's text. Raises DataError if the column is missing, or the cell is empty or holds anything else."""
    if column not in row:
        raise DataError(f"{where}: no '{column}'; it has {sorted(map(str, row))}: {hint}")
    value = row[column]
    is_nothing = value is None or value != value  # json's null and NaN
    if not is_nothing and not isinstance(value, (str, int)):
        raise DataError(f"{where}: {column} is {shown(value)}; wanted text or a whole number")
    text = str(value).strip()
    if text.lower() in EMPTY:
        raise DataError(f"{where}: {column} is empty ({shown(value)}); fill it in or remove the row: {hint}")
    check_writable(text, where)
    return text


def shown(value: Any) -> str:
    """A value in a short form for messages."""
    text = ascii(value) if isinstance(value, str) else str(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
