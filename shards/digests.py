"""OUT/shards.json holds size and sha256 of every output shard of a job, as index.json does for image shards. So a
flipped bit is found even if the member still decodes.

The writer of a shard puts a hidden note beside it before the shard gets its name; when all shards exist, the notes
become shards.json. OUT is a folder or a URL; shards at a URL are read from verified copies.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from shards.cache import Cache, Wanted, release
from shards.files import publish
from shards.index import SHA256
from shards.places import list_names, read_if_there, remove, sha256_at, size_of, upload, write_at
from shards.remote import Place, join, name_of, parent_of
from shards.schema import DataError

DIGESTS = "shards.json"


class Written(NamedTuple):
    """Size and sha256 of a shard as it was written."""

    bytes: int
    sha256: str

    @staticmethod
    def of(content: Any) -> "Written":
        """Check and convert; raises ValueError or TypeError if it is none (the sha256 becomes a copy's name)."""
        size, sha256 = content
        if not isinstance(size, int) or not SHA256.fullmatch(sha256):
            raise ValueError(content)
        return Written(size, sha256)


def note_path(path: Place) -> Place:
    return join(parent_of(path), f".{name_of(path).removesuffix('.tar')}.json")


def read_now(path: Place) -> Written:
    """Size and sha256 of a file as it is now. Raises DataError if it cannot be read."""
    return Written(size_of(path), sha256_at(path))


def publish_noted(temporary: Path, path: Place) -> None:
    """Give a shard that was just written its name, here or at a URL, after its note, so that none lacks a note."""
    write_at(note_path(path), json.dumps(read_now(temporary)))
    if isinstance(path, Path):
        publish(temporary, path)
    else:
        upload(temporary, path)


def find_written(path: Place) -> Written | None:
    """Size and sha256 of a shard as it was written; None if not recorded."""
    note = look_at(note_path(path))
    with suppress(ValueError, TypeError):
        return Written.of(json.loads(note))
    return read_digests(parent_of(path)).get(name_of(path))


def find_all_written(folder: Place, names: Sequence[str]) -> dict[str, Written]:
    """{shard: its size and sha256 as written}, for those recorded; it reads the folder only a few times."""
    there = list_names(folder)  # first, since notes that have gone by then are in shards.json
    kept = read_digests(folder)
    found = {
        name: find_written(join(folder, name)) if name_of(note_path(join(folder, name))) in there else kept.get(name)
        for name in names
    }
    return {name: written for name, written in found.items() if written is not None}


def read_digests(folder: Place) -> dict[str, Written]:
    """{shard: its size and sha256 as written}; {} if shards.json is missing or damaged."""
    path = join(folder, DIGESTS)
    if not isinstance(path, Path):
        return parse(look_at(path))
    try:
        return parse_file(path, path.stat().st_mtime_ns)
    except OSError:
        return {}


@lru_cache(maxsize=16)
def parse_file(path: Path, mtime_ns: int) -> dict[str, Written]:
    return parse(look_at(path))


def parse(content: bytes) -> dict[str, Written]:
    with suppress(ValueError, TypeError, AttributeError):
        return {name: Written.of(of_shard) for name, of_shard in json.loads(content).items()}
    return {}


def look_at(path: Place) -> bytes:
    """A small file; empty if there is none or it cannot be read. Raises DataError if a store does not answer."""
    try:
        return read_if_there(path) or b""
    except OSError:
        return b""


def find_change(path: Place) -> str:
    """How a shard's bytes differ from those that were written; "" if they do not or it is not known. Raises DataError
    as read_now does."""
    written = find_written(path)
    if written is None:
        return ""
    size = size_of(path)
    if size != written.bytes:
        return f"has {size} bytes, but {written.bytes} were written"
    return (
        "" if sha256_at(path) == written.sha256 else "its sha256 differs from what was written: its bytes have changed"
    )


def write_digests(folder: Place, names: Sequence[str]) -> None:
    """Make shards.json from the notes, and from the files themselves where a note is missing."""
    before, written = read_digests(folder), find_all_written(folder, names)
    now = {name: written.get(name) or read_now(join(folder, name)) for name in names}
    if now != before:
        write_at(join(folder, DIGESTS), json.dumps(now, indent=1) + "\n")
    notes = {name_of(note_path(join(folder, name))) for name in names}
    for note in sorted(notes & list_names(folder)):
        remove(join(folder, note))


def want(url: Place, written: Written) -> Wanted:
    """A shard at a URL, in the form in which the cache is asked for it."""
    return Wanted(url=str(url), bytes=written.bytes, sha256=written.sha256)


@contextmanager
def held_here(path: Place, remedy: str, *, written: Written | None = None) -> Iterator[Path]:
    """A shard as a local file for the block: the shard itself, or a verified copy of one at a URL.

    Args:
        written: its size and sha256, if already known.

    Raises:
        DataError: it cannot be fetched, or its size and sha256 are not recorded.
    """
    if isinstance(path, Path):
        yield path
        return
    kept = written or find_written(path)
    if kept is None:
        raise DataError(f"{path}: this file, or {DIGESTS} with its sha256, is missing; {remedy}")
    cache, wanted = Cache.from_environment(), want(path, kept)
    if written is None:
        cache.drop_if_damaged(wanted)
    try:
        descriptor = cache.open(wanted)
    except DataError as error:
        raise DataError(f"{error}; or {remedy}") from error
    try:
        yield cache.folder / kept.sha256
    finally:
        release(descriptor)
