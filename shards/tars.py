"""Reading tar shards, whatever bytes they hold: the result is what was written, or a DataError, never fewer members.

A shard is plain files one after another and two empty blocks at the end, as WebDataset writes it. Everything else
that tar files can hold (links, sparse files, compression) is refused, and nothing is ever unpacked to disk.
"""

import hashlib
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from shards.schema import DataError

BLOCK = tarfile.BLOCKSIZE  # bytes
END = 2 * BLOCK  # bytes of zeros that end a tar
LONGEST_NAME = 1 << 16  # bytes of an extended header, for a name that is too long for a plain one
Span = tuple[int, int]  # offset and size of a member's bytes


def tar_members(path: Path) -> Iterator[tuple[str, str, Span, bytes]]:
    """(key, extension, (offset, size), bytes) of each member of a tar shard.

    Raises:
        DataError: unreadable, not a tar, damaged, or cut short, even between two members.
    """
    for name, span, file in walk(path):
        key, _, extension = name.partition(".")
        yield key, extension, span, read_exactly(path, file, span[1])


def tar_spans(path: Path) -> Iterator[tuple[str, str, Span]]:
    """(key, extension, (offset, size)) of each member; reads only the headers. Raises DataError as tar_members does."""
    for name, span, _ in walk(path):
        key, _, extension = name.partition(".")
        yield key, extension, span


def walk(path: Path) -> Iterator[tuple[str, Span, BinaryIO]]:
    """(name, (offset, size), the file, positioned at that offset) of each member."""
    try:
        with path.open("rb") as file:
            size, at, long_name = os.fstat(file.fileno()).st_size, 0, None
            while (header := next_header(path, file, at)) is not None:
                span = (at + BLOCK, header.size)
                if header.size < 0 or sum(span) > size:
                    raise DataError(
                        f"{path}: member {shown(header.name)} at byte {at} should have {header.size} bytes, the file "
                        f"ends at {size}: cut short or damaged; write or fetch it again"
                    )
                if header.type == tarfile.XHDTYPE:
                    long_name = name_in(path, at, read_exactly(path, file, min(header.size, LONGEST_NAME)))
                elif header.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
                    yield long_name or header.name, span, file
                    long_name = None
                else:
                    raise DataError(
                        f"{path}: member {shown(header.name)} at byte {at} is not a plain file ({header.type!r}), and "
                        "a shard holds nothing else; write it with `wsss shards`"
                    )
                at += BLOCK + -(-header.size // BLOCK) * BLOCK
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path | str, error: OSError) -> DataError:
    return DataError(f"{path}: unreadable ({error.strerror or error}); fix its permissions or its disk, or restore it")


def read_exactly(path: Path, file: BinaryIO, size: int) -> bytes:
    try:
        data = file.read(size)
    except OSError as error:
        raise unreadable(path, error) from error
    if len(data) != size:
        raise DataError(f"{path}: {len(data)} of {size} bytes: became shorter while it was read; let its writer finish")
    return data


def next_header(path: Path, file: BinaryIO, at: int) -> tarfile.TarInfo | None:
    """The header of the member at byte `at`; None at a valid end, where only zeros follow."""
    file.seek(at)
    block = file.read(BLOCK)
    if len(block) == BLOCK and block.count(0) < BLOCK:
        try:
            return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError) as error:
            raise DataError(f"{path}: damaged header at byte {at} ({error}); write or fetch it again") from error
    zeros = len(block)
    while block and block.count(0) == len(block):
        block = file.read(1 << 20)
        zeros += len(block)
    if block:
        raise DataError(f"{path}: damaged: an empty header at byte {at}, but data after it; write or fetch it again")
    if zeros < END:
        raise DataError(
            f"{path}: ends at byte {at + zeros} without the end of a tar: cut short; write or fetch it again"
        )
    if (at + zeros) % BLOCK:
        raise DataError(
            f"{path}: {at + zeros} bytes are not a whole number of blocks: damaged; write or fetch it again"
        )
    return None


def name_in(path: Path, at: int, records: bytes) -> str:
    """The name in an extended header, whose records are 'LENGTH path=NAME', of LENGTH bytes including the newline."""
    length, _, rest = records.partition(b" ")
    value = rest.removeprefix(b"path=").removesuffix(b"\n")
    if not length.isdigit() or length != str(len(records)).encode() or len(rest) - len(value) != len(b"path=\n"):
        raise DataError(f"{path}: extended header at byte {at} is more than a long name; write it with `wsss shards`")
    return value.decode("utf-8", "surrogateescape")


def shown(name: str) -> str:
    """An unchecked name in a form that is safe to print."""
    return ascii(name if len(name) <= 80 else name[:77] + "...")


def is_header_of(header: bytes, name: str, size: int) -> bool:
    """Whether this block is the header of a member with this name and size. It only compares bytes, as it runs for
    every read."""
    named = header[: tarfile.LENGTH_NAME].rstrip(b"\0") == name.encode()[: tarfile.LENGTH_NAME]
    return named and header[124:136].strip(b"\0 ").lstrip(b"0") == b"%o" % size


def sha256_of(path: Path) -> str:
    """64 hex digits. Raises DataError if the file cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise unreadable(path, error) from error
    return digest.hexdigest()
