"""Where runs lie, how a file is written whole (see shards.files), and what becomes of one that is damaged."""

import json
import sys
from pathlib import Path
from typing import Any

from shards.files import (
    appearing,
    link_or_move,
    publish,
    sync_to_disk,
    take_lock,
    tell_refusal,
    temporary_name,
    write_whole,
)
from shards.schema import DataError

__all__ = [
    "RUNS",
    "Damaged",
    "appearing",
    "link_or_move",
    "publish",
    "read_json",
    "root_of",
    "set_aside",
    "sync_to_disk",
    "take_lock",
    "tell_refusal",
    "temporary_name",
    "write_whole",
]

RUNS = Path("runs")


class Damaged(DataError):
    """A file that a run keeps for itself is empty or no JSON, as a power cut may leave it."""


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file.

    Raises:
        Damaged: it is none; names the file.
    """
    data = path.read_bytes()
    try:
        content = json.loads(data)
    except ValueError as error:
        why = f"no JSON ({error})" if data.strip(b"\0 \n") else "empty"
        raise Damaged(f"{path}: is {why}, as a power cut or a full disk leaves it") from error
    if not isinstance(content, dict):
        raise Damaged(f"{path}: holds {type(content).__name__}, wanted a JSON object")
    return content


def set_aside(path: Path, why: object) -> bool:
    """Rename a damaged file to NAME.damaged, in place of an older one, and say so; returns False, since it is gone."""
    aside = path.with_name(f"{path.name}.damaged")
    try:
        path.replace(aside)
        print(f"{why}; set aside as {aside.name}, it is begun anew", file=sys.stderr, flush=True)
    except FileNotFoundError:  # another process of the run has done so
        pass
    except OSError as error:
        print(f"{why}; could not be set aside ({error})", file=sys.stderr, flush=True)
    return False


def root_of(run: Path) -> Path:
    """The folder of runs that a run lies in, wherever one stands: the next one above it that is named so."""
    return next((path for path in run.absolute().parents if path.name == RUNS.name), RUNS.absolute())
