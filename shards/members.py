"""Reads the tars that jobs write next to image shards: one per image shard, with the same name, and with members
KEY.EXTENSION of the same samples in the same order.

It is the only reader of such tars; its callers decode the bytes as CAMs, cues, label maps or masks.
"""

import os
from collections.abc import Collection, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import TypeVar

from shards.digests import find_change, held_here
from shards.folder import ShardFolder
from shards.remote import Place, join
from shards.schema import DataError
from shards.tars import Span, shown, tar_members, tar_spans, unreadable

Value = TypeVar("Value")
AGAIN = "remove this shard and run what wrote it again"


def members_next_to(
    shards: ShardFolder, folder: Place, name: str, extensions: Collection[str], *, remedy: str = AGAIN
) -> Iterator[tuple[int, dict[str, bytes]]]:
    """(number, {extension: bytes}) of every sample of the image shard `name`, from FOLDER/name, one at a time.

    Args:
        extensions: extensions that every sample must have; others are returned, too.
        remedy: ends the error messages.

    Raises:
        DataError: the tar is missing, damaged or changed since it was written, holds other samples than the image shard
            or in another order, or a sample lacks an extension.
    """
    path = join(folder, name)
    with held_here(path, remedy) as here:
        if here == path and (change := find_change(require_file(here, remedy))):
            raise DataError(f"{path}: {change}; {remedy}")
        found = ((key, extension, data) for key, extension, _, data in tar_members(here))
        yield from group_by_sample(found, shards, name, path, extensions, remedy)


def sample_next_to(
    shards: ShardFolder, folder: Place, number: int, extensions: Collection[str], *, remedy: str = AGAIN
) -> dict[str, bytes]:
    """{extension: bytes} of one sample; of the others in its shard only headers are read.

    Raises:
        DataError: as members_next_to does.
    """
    name = shards.index.shards[shards.shard_of[number]].name
    path = join(folder, name)
    with held_here(path, remedy) as here:
        spans = spans_next_to(shards, name, path, here, extensions, remedy=remedy)[number]
        return {extension: read_span(here, span) for extension, span in spans.items()}


def spans_next_to(
    shards: ShardFolder, name: str, path: Place, here: Path, extensions: Collection[str], *, remedy: str = AGAIN
) -> dict[int, dict[str, Span]]:
    """{number: {extension: (offset, size)}} of every sample; only headers are read. Raises as members_next_to does.

    Args:
        path: of the shard, for messages; `here` is the local file that is read.
    """
    return dict(group_by_sample(tar_spans(require_file(here, remedy)), shards, name, path, extensions, remedy))


def read_span(path: Path, span: Span) -> bytes:
    """The bytes of a member. Raises DataError if the file cannot be read."""
    offset, size = span
    try:
        with path.open("rb") as file:
            return os.pread(file.fileno(), size, offset)
    except OSError as error:
        raise unreadable(path, error) from error


def require_file(path: Path, remedy: str) -> Path:
    """The path; raises DataError if there is no such file."""
    if not path.is_file():
        raise DataError(f"{path}: is missing; {remedy}")
    return path


def group_by_sample(
    members: Iterable[tuple[str, str, Value]],
    shards: ShardFolder,
    name: str,
    path: Place,
    extensions: Collection[str],
    remedy: str,
) -> Iterator[tuple[int, dict[str, Value]]]:
    """(number, {extension: value}) of the samples in a tar's (key, extension, value), compared with the image shard."""
    numbers, done = shards.numbers_of(name), 0
    for key, of_sample in groupby(members, key=lambda member: member[0]):
        wanted = shards.keys[numbers[done]] if done < len(numbers) else "no more"
        if key != wanted:
            raise DataError(
                f"{path}: holds {shown(key)} where the images have '{wanted}': it belongs to other image shards; "
                f"{remedy}"
            )
        found: dict[str, Value] = {}
        for _, extension, value in of_sample:
            if extension in found:
                raise DataError(f"{path}: {shown(f'{key}.{extension}')} occurs twice; {remedy}")
            found[extension] = value
        gone = [extension for extension in extensions if extension not in found]
        if gone:
            raise DataError(
                f"{path}: sample '{key}' has no {gone[0]}, only {', '.join(map(shown, sorted(found)))}; {remedy}"
            )
        yield numbers[done], found
        done += 1
    if done < len(numbers):
        raise DataError(f"{path}: holds {done} samples, but there are {len(numbers)} images; {remedy}")
