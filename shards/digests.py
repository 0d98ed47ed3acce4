"""What jobs wrote, by its bytes: OUT/shards.json holds size and sha256 of every output shard, as index.json does of
image shards. So a bit that flipped is found also where the member still decodes.

Whoever writes a shard leaves a hidden note beside it, before the shard gets its name; when all are there the notes
become shards.json. OUT is a folder, or a URL, whose shards are read from verified copies.
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
    """What a shard was when it was written."""

    bytes: int
    sha256: str

    @staticmethod
    def of(content: Any) -> "Written":
        """Raises ValueError or TypeError for what is none: the sha256 becomes the name of a copy."""
        size, sha256 = content
        if not isinstance(size, int) or not SHA256.fullmatch(sha256):
            raise ValueError(content)
        return Written(size, sha256)


def note_path(path: Place) -> Place:
    return join(parent_of(path), f".{name_of(path).removesuffix('.tar')}.json")


def read_now(path: Place) -> Written:
    """Raises DataError if the file cannot be read."""
    return Written(size_of(path), sha256_at(path))


def publish_noted(temporary: Path, path: Place) -> None:
    """Give a shard that was just written its name, here or at a URL, after its note: none is there without one."""
    write_at(note_path(path), json.dumps(read_now(temporary)))
    if isinstance(path, Path):
        publish(temporary, path)
    else:
        upload(temporary, path)


def find_written(path: Place) -> Written | None:
    """What a shard was when it was written; None where nobody kept it, as before there was shards.json."""
    note = look_at(note_path(path))
    with suppress(ValueError, TypeError):
        return Written.of(json.loads(note))
    return read_digests(parent_of(path)).get(name_of(path))


def find_all_written(folder: Place, names: Sequence[str]) -> dict[str, Written]:
    """What these shards were, of those of which it is known, in a few looks at the folder."""
    there = list_names(folder)  # first: what is no note any more is in shards.json then
    kept = read_digests(folder)
    found = {
        name: find_written(join(folder, name)) if name_of(note_path(join(folder, name))) in there else kept.get(name)
        for name in names
    }
    return {name: written for name, written in found.items() if written is not None}


def read_digests(folder: Place) -> dict[str, Written]:
    """{shard: what it was}; {} where there is no shards.json, or a damaged one."""
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
    """A small file; nothing where there is none or it cannot be read. Raises DataError if a store does not answer."""
    try:
        return read_if_there(path) or b""
    except OSError:
        return b""


def find_change(path: Place) -> str:
    """How a shard's bytes are not those that were written; "" if they are, or nobody knows. Raises DataError as
    read_now."""
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
    """Make shards.json of the notes, and of the files themselves where there is none."""
    before, written = read_digests(folder), find_all_written(folder, names)
    now = {name: written.get(name) or read_now(join(folder, name)) for name in names}
    if now != before:
        write_at(join(folder, DIGESTS), json.dumps(now, indent=1) + "\n")
    notes = {name_of(note_path(join(folder, name))) for name in names}
    for note in sorted(notes & list_names(folder)):
        remove(join(folder, note))


def want(url: Place, written: Written) -> Wanted:
    """A shard of a URL, as the cache is asked for it."""
    return Wanted(url=str(url), bytes=written.bytes, sha256=written.sha256)


@contextmanager
def held_here(path: Place, remedy: str, *, written: Written | None = None) -> Iterator[Path]:
    """A shard as a file of this machine, as long as the block lasts: itself, or of a URL a copy that is what was
    written.

    Args:
        written: what it was, where that is known and its copy need not be read once more.

    Raises:
        DataError: it does not come, or nobody knows what it was.
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
