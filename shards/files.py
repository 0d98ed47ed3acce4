"""Files that are whole or absent, also after a power cut."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def sync_to_disk(path: Path) -> None:
    """Of a file its bytes, of a folder its names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A hidden name in the folder of `path` for the block to write to; the file takes its own name, in place of an
    older one, when the block succeeds and its bytes are on the disk. When the block fails, nothing of it stays.

    Raises:
        OSError: the disk does not take it, or the block wrote no file; `path` is as it was before.
    """
    with temporary_name(path) as temporary:
        yield temporary
        publish(temporary, path)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file that is never seen half written; text as UTF-8.

    Raises:
        OSError: the disk does not take it; the file is as it was before.
    """
    with appearing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def temporary_name(path: Path) -> Iterator[Path]:
    """A hidden name in the folder of `path` that no other process has; what bears it at the end is removed."""
    temporary = path.with_name(f".{path.name.lstrip('.')}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def publish(temporary: Path, path: Path) -> None:
    """Give a file or folder its name, once its bytes are on the disk; a file takes the place of an older one."""
    sync_to_disk(temporary)
    temporary.replace(path)
    sync_to_disk(path.parent)
