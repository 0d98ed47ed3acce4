"""Where runs are, and the configs that ship with the package; what happens to damaged files. Writing whole files:
shards.files."""

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
OUTPUTS = "WSSS_OUTPUTS"  # folder or URL into which jobs write instead of their run
URL_AS_PATH = re.compile(r"([a-z][a-z0-9+.]+:)/(.*)")
HERE = Path("configs")  # changed or own configs in the working folder
PACKAGED, BESIDE = Path(__file__).with_name("configs"), Path(__file__).parents[1] / "configs"
SHIPPED = PACKAGED if PACKAGED.is_dir() else BESIDE  # as installed from a wheel, and in a checkout


def find_shipped(named: str | Path) -> Path:
    """The file that a path, or a name such as demo/teacher, means: the path itself, else a file in ./configs, else one
    that ships with the package. If there is none, the path unchanged."""
    path = Path(named)
    inside = path.relative_to(HERE) if path.parts[:1] == HERE.parts else path
    names = (inside, Path(f"{inside}.yaml"))
    places = [path, *(folder / name for folder in (HERE, SHIPPED) for name in names)]
    return next((place for place in places if place.is_file()), path)


def list_shipped(pattern: str) -> dict[str, Path]:
    """{name: file} of the YAMLs in ./configs and of those that ship; a name is a path there, such as demo/teacher."""
    found: dict[str, Path] = {}
    for folder in (SHIPPED, HERE):  # the nearer one wins
        found |= {str(path.relative_to(folder).with_suffix("")): path for path in folder.glob(f"{pattern}.yaml")}
    return dict(sorted(found.items()))


class Damaged(DataError):
    """A file of a run is damaged, for example empty or not JSON, as a power cut may leave it."""


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file.

    Raises:
        Damaged: it holds anything else; names the file.
    """
    return parse_json(path.read_bytes(), path)


def find_json(place: Place) -> dict[str, Any] | None:
    """The same for a file here or at a URL; None if there is none. Raises Damaged, or DataError if a store fails."""
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
    """Rename a damaged file to NAME.damaged, replacing an older one, and say so; returns False: the file is gone."""
    aside = f"{name_of(path)}.damaged"
    try:
        if isinstance(path, Path):
            path.replace(path.with_name(aside))
        else:
            rename_at(path, aside)
        print(f"{why}; moved to {aside}; a new file is started", file=sys.stderr, flush=True)
    except FileNotFoundError:  # another process of the run has done it
        pass
    except OSError as error:
        print(f"{why}; could not be moved aside ({error})", file=sys.stderr, flush=True)
    return False


def require_here(path: Given) -> Given:
    """The path, paths, or None, unchanged. Raises DataError for a URL, which Path turns into a local s3:/bucket."""
    for one in path if isinstance(path, list) else [path]:
        if found := URL_AS_PATH.match(str(one)):
            raise DataError(
                f"{found[1]}//{found[2]}: must be a local path; only image shards that are read, job outputs "
                f"({OUTPUTS}=URL) and cues (--out) may be at a URL"
            )
    return path


def typed(*words: object) -> str:
    """A `wsss` command as it is typed in a shell, with quotes where needed."""
    return shlex.join(["wsss", *map(str, words)])


def place_run(path: Path) -> Path:
    """The path of a run's folder, or of something in it: `runs/...` in configs and on pages means a path below RUNS."""
    require_here(path)
    return RUNS.joinpath(*path.parts[1:]) if path.parts[:1] == ("runs",) and not path.exists() else path


def place_outputs(path: Path) -> Place:
    """Where jobs write the outputs for a path of a run: there, or, if WSSS_OUTPUTS names a folder or URL, at the same
    path below that instead of below the folder of runs.

    Raises:
        DataError: WSSS_OUTPUTS is not a valid place, or the run is not in a folder of runs.
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
    """The place of mask shards: a URL, a folder or, if they belong to a run, where its outputs are."""
    found = place_of(place)  # type: ignore[arg-type]
    if is_url(found):
        return found
    path = place_run(Path(found))
    return place_outputs(path) if path.absolute().is_relative_to(RUNS.absolute()) else path


def root_of(run: Path) -> Path:
    """The folder of runs that contains a run: the nearest folder above it that is RUNS or named `runs`; else RUNS."""
    above, ours = run.absolute().parents, RUNS.absolute()
    return next((path for path in above if path == ours or path.name == "runs"), ours)
