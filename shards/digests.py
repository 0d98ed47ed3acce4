"""What jobs wrote, by its bytes: OUT/shards.json holds size and sha256 of every output shard, as index.json does of
image shards. So a bit that flipped is found also where the member still decodes.

Whoever writes a shard leaves a hidden note beside it; when all are there the notes become shards.json.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from shards.files import write_whole
from shards.tars import sha256_of

DIGESTS = "shards.json"


class Written(NamedTuple):
    """What a shard was when it was written."""

    bytes: int
    sha256: str


def note_path(path: Path) -> Path:
    return path.with_name(f".{path.stem}.json")


def read_now(path: Path) -> Written:
    """Raises DataError if the file cannot be read."""
    return Written(path.stat().st_size, sha256_of(path))


def note_written(path: Path) -> None:
    """Keep what a shard is that was just written."""
    write_whole(note_path(path), json.dumps(read_now(path)))


def find_written(path: Path) -> Written | None:
    """What a shard was when it was written; None where nobody kept it, as before there was shards.json."""
    try:
        return Written(*json.loads(note_path(path).read_text()))
    except (OSError, ValueError, TypeError):
        return read_digests(path.parent).get(path.name)


def read_digests(folder: Path) -> dict[str, Written]:
    """{shard: what it was}; {} where there is no shards.json, or a damaged one."""
    path = folder / DIGESTS
    try:
        return parse(path, path.stat().st_mtime_ns)
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


@lru_cache(maxsize=16)
def parse(path: Path, mtime_ns: int) -> dict[str, Written]:
    return {name: Written(*of_shard) for name, of_shard in json.loads(path.read_text()).items()}


def find_change(path: Path) -> str:
    """How a shard's bytes are not those that were written; "" if they are, or nobody knows. Raises DataError as
    read_now."""
    written = find_written(path)
    if written is None:
        return ""
    size = path.stat().st_size
    if size != written.bytes:
        return f"has {size} bytes, {written.bytes} were written"
    return "" if sha256_of(path) == written.sha256 else "its sha256 is not that of what was written: bytes have changed"


def write_digests(folder: Path, names: Sequence[str]) -> None:
    """Make shards.json of the notes, and of the files themselves where there is none."""
    before = read_digests(folder)
    now = {name: find_written(folder / name) or read_now(folder / name) for name in names}
    if now != before:
        write_whole(folder / DIGESTS, json.dumps(now, indent=1) + "\n")
    for name in names:
        note_path(folder / name).unlink(missing_ok=True)
