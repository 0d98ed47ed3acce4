"""The cache of remote files, which are named by their sha256 and verified before they get that name.

    WSSS_CACHE     its folder; default ~/.cache/wsss. A local disk: network file systems may lack locks.
    WSSS_CACHE_GB  its size limit in GB; default 50. The least recently used files are removed first.

Data sets whose shards have equal names never mix, and a second run finds what the first one fetched. Locks (flock) make
it safe for any number of processes: one fetches, the others wait for it, and files that a process has open are kept.
"""

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from shards.files import publish, take_lock, tell_refusal
from shards.remote import download, is_url
from shards.schema import DataError
from shards.tars import sha256_of

log = logging.getLogger(__name__)

LOOK_AGAIN_S = 0.05  # while another process fetches what this one waits for
STUCK_S = 340.0  # without a byte: that process is stopped or its disk hangs; while trying, it gives up earlier
LOCK_S = 60.0  # for the lock of the whole folder, under which only short work is done


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A remote file, with the size and hash that it must have."""

    url: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Cache:
    """A folder of verified files.

    Attributes:
        limit: of its size, in bytes. Files in use are kept even if they exceed it.
    """

    folder: Path
    limit: int

    @staticmethod
    def from_environment() -> "Cache":
        """The cache that WSSS_CACHE and WSSS_CACHE_GB describe; raises DataError if folder or number is not usable."""
        asked = os.environ.get("WSSS_CACHE") or "~/.cache/wsss"
        if is_url(asked):
            raise DataError(f"WSSS_CACHE is {asked}, a URL; name a folder on a local disk")
        try:
            folder = Path(asked).expanduser()
        except RuntimeError as error:  # a user without a name and without HOME
            raise DataError(
                f"there is no place for the cache of remote shards ({error}); name a folder with WSSS_CACHE"
            ) from error
        text = os.environ.get("WSSS_CACHE_GB") or "50"
        try:
            limit = int(float(text) * 1e9)
        except (ValueError, OverflowError):
            limit = 0
        if limit <= 0:
            raise DataError(f"WSSS_CACHE_GB is '{text}'; wanted the cache's size limit in GB, for example 50")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"WSSS_CACHE: {folder} cannot be made ({error}); name a folder on a local disk") from error
        return Cache(folder=folder, limit=limit)

    def open(self, wanted: Wanted) -> int:
        """A descriptor of the file, fetched if it is not there. The file is kept until `release` closes it.

        Raises:
            DataError: not fetched after several tries, or the cache cannot be read or written.
        """
        waits = Patience(self.part(wanted), wanted)
        while True:
            try:
                descriptor = self.held(wanted)
                if descriptor is None:
                    descriptor = self.fetch(wanted, waits.waited_s())
            except OSError as error:
                refused = isinstance(error, PermissionError)
                hint = "users who share it need write access to everything in it" if refused else "or name another one"
                raise DataError(f"WSSS_CACHE: {tell_refusal(error, self.part(wanted))}; {hint}") from error
            if descriptor is not None:
                return descriptor
            waits.once()

    def held(self, wanted: Wanted) -> int | None:
        """The file if it is there, locked against removal and marked as just used."""
        path = self.folder / wanted.sha256
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        if not try_lock(descriptor, fcntl.LOCK_SH, path):
            release(descriptor)
            return None
        if os.fstat(descriptor).st_size != wanted.bytes:
            path.unlink(missing_ok=True)
            release(descriptor)
            return None
        with suppress(PermissionError, FileNotFoundError):  # another user's file: theirs to mark
            os.utime(path)
        return descriptor

    def fetch(self, wanted: Wanted, waited_s: float = 0.0) -> int | None:
        """Fetch, check and store the file; None if another process is doing this or has just done it.

        Args:
            waited_s: how long this process has already waited for it.
        """
        path, part = self.folder / wanted.sha256, self.part(wanted)
        try:
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise DataError(f"{tell_refusal(error, part)}; or name another cache with WSSS_CACHE") from error
        try:
            if not try_lock(descriptor, fcntl.LOCK_EX, part) or not is_still(descriptor, part):
                release(descriptor)
                return None
            if path.exists():
                part.unlink(missing_ok=True)
                release(descriptor)
                return None
            self.make_room(wanted.bytes)
            try:
                download(wanted.url, part, wanted.bytes, wanted.sha256, waited_s=waited_s)
                publish(part, path)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            try_lock(descriptor, fcntl.LOCK_SH, path)
            self.make_room(0)
        except BaseException:
            release(descriptor)
            raise
        return descriptor

    def part(self, wanted: Wanted) -> Path:
        """The file while it is being fetched; the process that fetches it holds its lock."""
        return self.folder / f".{wanted.sha256}.part"

    def make_room(self, size: int) -> None:
        """Remove the least recently used files that are not open, until `size` more bytes fit within the limit."""
        with exclusive(self.folder / ".lock"):
            files = sorted(self.files())
            total = sum(size_of_file for _, size_of_file, _ in files)
            for _, size_of_file, path in files:
                if total + size <= self.limit:
                    return
                if remove_unused(path):
                    total -= size_of_file
        if size and total + size > self.limit:
            tell_limit(self.folder, self.limit)

    def files(self) -> Iterator[tuple[float, int, Path]]:
        """(time of last use, bytes, path) of all finished and unfinished files."""
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):  # removed meanwhile
                if path.name != ".lock" and path.is_file():
                    stat = path.stat()
                    yield stat.st_mtime, stat.st_size, path

    def drop_if_damaged(self, wanted: Wanted) -> bool:
        """Whether the file's bytes changed in the cache; then it is removed, and the next `open` fetches it again."""
        path = self.folder / wanted.sha256
        if path.is_file() and sha256_of(path) == wanted.sha256:
            return False
        path.unlink(missing_ok=True)
        return True


class Patience:
    """Waits while another process fetches a file; raises an error if no byte has arrived for STUCK_S."""

    def __init__(self, part: Path, wanted: Wanted) -> None:
        self.part, self.wanted = part, wanted
        self.seen, self.since = -1, time.monotonic()

    def once(self) -> None:
        time.sleep(LOOK_AGAIN_S)
        try:
            came = self.part.stat().st_size
        except FileNotFoundError:
            came = -1
        if came != self.seen:
            self.seen, self.since = came, time.monotonic()
        if self.waited_s() > STUCK_S:
            raise DataError(
                f"{self.wanted.url}: another process is fetching it into {self.part}: {came} of {self.wanted.bytes} "
                f"bytes have arrived, none in the last {STUCK_S:.0f} s; end that process and start again"
            )

    def waited_s(self) -> float:
        """Seconds since the last byte."""
        return time.monotonic() - self.since


def try_lock(descriptor: int, kind: int, path: Path) -> bool:
    """Take a lock if it is free. Raises DataError if the file system has no locks."""
    try:
        held = take_lock(descriptor, kind)
    except OSError as error:
        raise DataError(f"{path}: cannot be locked: {tell_refusal(error, path)}") from error
    if held is None:
        raise DataError(f"{path}: this file system has no locks; name a folder on a local disk with WSSS_CACHE")
    return held


def release(descriptor: int) -> None:
    """Unlock and close a file; closing is not enough, since a fork's copy of the descriptor would keep the lock."""
    with suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def is_still(descriptor: int, path: Path) -> bool:
    """Whether the file still has this name, and was not renamed or removed between opening and locking."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


def remove_unused(path: Path) -> bool:
    """Remove a file unless a process holds its lock; returns whether it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        if not try_lock(descriptor, fcntl.LOCK_EX, path):
            return False
        path.unlink(missing_ok=True)
        return True
    finally:
        release(descriptor)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Let one process and thread at a time do short work inside the block."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with suppress(PermissionError):  # other users may have another umask
            os.fchmod(descriptor, 0o666)
        if take_lock(descriptor, wait_s=LOCK_S) is False:
            raise DataError(
                f"{path}: another process has locked it for {LOCK_S:.0f} s; end that process and start again"
            )
        yield
    finally:
        release(descriptor)


@cache  # once is enough
def tell_limit(folder: Path, limit: int) -> None:
    log.warning(
        "%s: the files in use exceed its limit of %.1f GB, which cannot be kept: raise WSSS_CACHE_GB, or write "
        "smaller shards",
        folder,
        limit / 1e9,
    )
