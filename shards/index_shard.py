"""A finished tar read once, to enter it in the index."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from shards.index import Shard, first_line
from shards.schema import DataError, Frame
from shards.tars import Span, sha256_of, shown, tar_members, unreadable


def index_shard(path: Path, name: str | None = None) -> Shard:
    """Read a finished shard once and return its entry in the index.

    Args:
        name: of the shard, if its file has another name, as in the cache.

    Raises:
        DataError: the tar is damaged, a sample lacks a member that others have, or its json lacks group or label.
    """
    rows: dict[str, dict[str, Span]] = {}
    about: dict[str, About] = {}
    for key, extension, span, data in tar_members(path):
        row = rows.setdefault(key, {})
        if extension in row:
            twice = shown(f"{key}.{extension}")
            raise DataError(f"{path}: {twice} occurs twice: two samples have the same key; rename one")
        row[extension] = span
        if extension == "json":
            about[key] = about_of(data, f"{path}: sample {shown(key)}")
    extensions = sorted({extension for row in rows.values() for extension in row})
    for key, row in rows.items():
        if sorted(row) != extensions or "json" not in row:
            raise DataError(
                f"{path}: sample {shown(key)} has members {[*map(shown, sorted(row))]}; others have "
                f"{[*map(shown, extensions)]}, and each has a json"
            )
    frames = [about[key].frame for key in rows]
    try:
        return Shard(
            name=name or path.name,
            bytes=path.stat().st_size,
            sha256=sha256_of(path),
            keys=list(rows),
            groups=[about[key].group for key in rows],
            image_labels=[about[key].image_label for key in rows],
            members={extension: [row[extension] for row in rows.values()] for extension in extensions},
            frames=frames if any(frames) else None,
        )
    except ValidationError as error:
        raise DataError(f"{path}: {first_line(error)}; write it with `wsss shards`") from error
    except OSError as error:
        raise unreadable(path, error) from error


class About(BaseModel):
    """What the index takes from a sample's json."""

    model_config = ConfigDict(extra="ignore")

    group: str
    image_label: list[int]
    frame: Frame | None = None


def about_of(data: bytes, where: str) -> About:
    try:
        return About.model_validate_json(data)
    except ValidationError as error:
        raise DataError(f"{where}: json: {first_line(error)}; write it again") from error
