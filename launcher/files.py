"""Where runs lie, and the configs that ship; how a file is written whole (see shards.files), and what becomes of a
damaged one."""

import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any, TypeVar

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
from shards.places import is_there, read_if_there, rename_at
from shards.remote import Place, is_url, join, name_of, place_of
from shards.schema import DataError

__all__ = [
    "RUNS",
    "Damaged",
    "appearing",
    "find_shipped",
    "link_or_move",
    "list_shipped",
    "place_outputs",
    "place_run",
    "publish",
    "read_json",
    "require_here",
    "root_of",
    "set_aside",
    "sync_to_disk",
    "take_lock",
    "tell_refusal",
    "temporary_name",
    "typed",
    "write_whole",
]

Given = TypeVar("Given", Path, Path | None, list[Path])

RUNS = Path(os.environ.get("WSSS_RUNS") or "runs")
OUTPUTS = "WSSS_OUTPUTS"  # where jobs write, if not into their run
URL_AS_PATH = re.compile(r"([a-z][a-z0-9+.]+:)/(.*)")
HERE = Path("configs")  # where somebody works who has changed the project's, or has some of their own
PACKAGED, BESIDE = Path(__file__).with_name("configs"), Path(__file__).parents[1] / "configs"
SHIPPED = PACKAGED if PACKAGED.is_dir() else BESIDE  # as installed from a wheel, and in a checkout


def find_shipped(named: str | Path) -> Path:
    """The file that a path, or a name such as demo/teacher, means: itself, else one in ./configs, else one that ships
    with the package. Where there is none, the path as it is."""
    path = Path(named)
    inside = path.relative_to(HERE) if path.parts[:1] == HERE.parts else path
    names = (inside, Path(f"{inside}.yaml"))
    places = [path, *(folder / name for folder in (HERE, SHIPPED) for name in names)]
    return next((place for place in places if place.is_file()), path)


def list_shipped(pattern: str) -> dict[str, Path]:
    """{name: file} of the YAMLs in ./configs and of those that ship, by their path there, such as demo/teacher."""
    found: dict[str, Path] = {}
    for folder in (SHIPPED, HERE):  # the nearer one wins
        found |= {str(path.relative_to(folder).with_suffix("")): path for path in folder.glob(f"{pattern}.yaml")}
    return dict(sorted(found.items()))


class Damaged(DataError):
    """A file that a run keeps for itself is empty or no JSON, as a power cut may leave it."""


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file.

    Raises:
        Damaged: it is none; names the file.
    """
    return parse_json(path.read_bytes(), path)


def find_json(place: Place) -> dict[str, Any] | None:
    """The same of a file here or at a URL; None if there is none. Raises Damaged, or DataError if a store fails."""
    if isinstance(place, Path) and not is_there(place):
        return None
    data = read_if_there(place)
    return None if data is None else parse_json(data, place)


def parse_json(data: bytes, path: Place) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except ValueError as error:
        why = f"not JSON ({error})" if data.strip(b"\0 \n") else "empty"
        raise Damaged(f"{path}: is {why}, as after a power cut or on a full disk") from error
    if not isinstance(content, dict):
        raise Damaged(f"{path}: holds {type(content).__name__}, wanted a JSON object")
    return content


def set_aside(path: Place, why: object) -> bool:
    """Rename a damaged file to NAME.damaged, in place of an older one, and say so; returns False, since it is gone."""
    aside = f"{name_of(path)}.damaged"
    try:
        if isinstance(path, Path):
            path.replace(path.with_name(aside))
        else:
            rename_at(path, aside)
        print(f"{why}; moved to {aside}; a new file is started", file=sys.stderr, flush=True)
    except FileNotFoundError:  # another process of the run has done so
        pass
    except OSError as error:
        print(f"{why}; could not be moved aside ({error})", file=sys.stderr, flush=True)
    return False


def require_here(path: Given) -> Given:
    """The path, paths, or None. Raises DataError if a URL was given, of which Path has made s3:/bucket: nobody looks
    there."""
    for one in path if isinstance(path, list) else [path]:
        if found := URL_AS_PATH.match(str(one)):
            raise DataError(
                f"{found[1]}//{found[2]}: must be a local path; only image shards that are read, job outputs "
                f"({OUTPUTS}=URL) and cues (--out) may be at a URL"
            )
    return path


def typed(*words: object) -> str:
    """A `wsss` command as it is typed in a shell, whatever characters its folders have."""
    return shlex.join(["wsss", *map(str, words)])


def place_run(path: Path) -> Path:
    """The folder of a run, or something in it: `runs/...`, as configs and pages name it, lies below RUNS."""
    require_here(path)
    return RUNS.joinpath(*path.parts[1:]) if path.parts[:1] == ("runs",) and not path.exists() else path


def place_outputs(path: Path) -> Place:
    """Where what jobs write at a path of a run lies: there, or at the same path below the folder or URL that
    WSSS_OUTPUTS names, in place of the folder of runs.

    Raises:
        DataError: WSSS_OUTPUTS is no place, or the run lies in no folder of runs.
    """
    asked = os.environ.get(OUTPUTS, "").strip()
    if not asked:
        return path
    outputs, root = place_of(asked), root_of(path)
    if not path.absolute().is_relative_to(root):
        raise DataError(
            f"{path}: lies outside {root}, the folder of runs, so its outputs have no place below {OUTPUTS}={asked}; "
            "name its folder of runs with WSSS_RUNS, or unset the variable"
        )
    return join(outputs, path.absolute().relative_to(root).as_posix())


def place_masks(place: object) -> Place:
    """Mask shards: at a URL, in a folder, or, where they are those of a run, where its outputs lie."""
    found = place_of(place)  # type: ignore[arg-type]
    if is_url(found):
        return found
    path = place_run(Path(found))
    return place_outputs(path) if path.absolute().is_relative_to(RUNS.absolute()) else path


def root_of(run: Path) -> Path:
    """The folder of runs that a run lies in, wherever one stands: RUNS, or the next one above it that is named so."""
    above, ours = run.absolute().parents, RUNS.absolute()
    return next((path for path in above if path == ours or path.name == "runs"), ours)
