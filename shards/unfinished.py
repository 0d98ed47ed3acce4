"""A split while it is being written: what survives a kill, and who may write.

It is in the hidden folder OUT/.SPLIT.DIGEST.tmp, where the digest covers everything that its bytes depend on. Beside
each finished shard is a note of its sha256. The next write of the same content checks and keeps the shards; a write of
other content removes them.
"""

import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shards.files import publish, take_lock, tell_refusal, write_whole
from shards.index import Shard
from shards.schema import DataError
from shards.tars import sha256_of

MADE_OF = "made_of.json"


@contextmanager
def temporary_folder(final: Path, content: dict[str, Any] | None) -> Iterator[Path]:
    """A folder next to `final` that gets its name when the block succeeds.

    If the block fails, finished shards are kept for the next write of the same content; without `content`, all is
    removed. Folders of interrupted writes of other content are removed, since the caller holds the lock.
    """
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    folder = final.with_name(f".{final.name}.{digest}.tmp")
    of_this_split = re.compile(rf"\.{re.escape(final.name)}\.[0-9a-f]{{12}}\.tmp")
    for other in final.parent.iterdir():
        if of_this_split.fullmatch(other.name) and (other != folder or content is None):
            shutil.rmtree(other)
    folder.mkdir(exist_ok=True)
    if content is not None:
        write_whole(folder / MADE_OF, json.dumps(content, indent=1) + "\n")
    try:
        yield folder
        for left_over in folder.glob(".*"):  # notes, and parts of shards of killed writers
            left_over.unlink(missing_ok=True)
        publish(folder, final)
    except BaseException:
        if content is None or not any(folder.glob("*.tar")):
            shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def hold_lock(final: Path) -> Iterator[None]:
    """Prevent other processes from writing the same split. The lock of a killed process is free at once.

    Raises:
        DataError: another process holds it, or the file system has no locks.
    """
    path = final.with_name(f".{final.name}.lock")
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise DataError(f"{final}: cannot be written: {tell_refusal(error, path)}") from error
        held = take_lock(lock)
        if held is None:
            os.close(lock)
            raise DataError(f"{path}: this file system has no locks; write to a local disk and copy the shards")
        if held is False:
            holder = os.read(lock, 200).decode(errors="replace") or "another process"
            os.close(lock)
            raise DataError(f"{final}: {holder} is writing it; wait for it, or end it and start again")
        if path.exists() and os.path.samestat(os.fstat(lock), os.stat(path)):
            break
        os.close(lock)  # its last holder removed it after it was opened here
    try:
        with suppress(OSError):  # a full disk, which the next write reports
            os.ftruncate(lock, 0)
            os.write(lock, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


def note_path(path: Path) -> Path:
    """The file that keeps the index of a finished shard until the whole split is finished."""
    return path.with_name(f".{path.name}.json")


def save_note(path: Path, shard: Shard) -> None:
    write_whole(note_path(path), shard.model_dump_json(exclude_none=True))


def find_finished_shard(path: Path) -> Shard | None:
    """What an interrupted write recorded about this shard, if its bytes are still the same."""
    try:
        shard = Shard.model_validate_json(note_path(path).read_text())
    except (FileNotFoundError, ValidationError):
        return None
    same = path.is_file() and path.stat().st_size == shard.bytes and sha256_of(path) == shard.sha256
    return shard if same else None
