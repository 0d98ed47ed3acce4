"""Files that are complete or absent, also after a power cut; locks; advice on errors of the disk.

File systems without locks (Lustre without flock, NFS without lockd), without sync of folders (SMB, sshfs, some FUSE) or
without hard links (FAT, SMB, gcsfuse) work, too, with weaker guarantees. So does a Mac, where fsync leaves bytes in the
disk's own cache.
"""

import errno
import fcntl
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NOT_OFFERED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}  # from a file system without this call
NO_LOCKS = {*NOT_OFFERED, errno.ENOLCK}
NO_LINKS = {*NOT_OFFERED, errno.EPERM, errno.EMLINK, errno.EXDEV}
NOT_FOR_FOLDERS = {*NOT_OFFERED, errno.EBADF, errno.EISDIR, errno.EACCES, errno.EPERM}
BUSY = {errno.EAGAIN, errno.EACCES}
LOOK_AGAIN_S = 0.05  # while another process holds a lock

REMEDIES = {
    errno.ENOSPC: "make room on this disk",
    errno.EDQUOT: "your quota on this disk is used up: make room, or have it raised",
    errno.EFBIG: "this file system or `ulimit -f` allows no file of this size",
    errno.EACCES: "you may not write there: fix the permissions, or choose another place",
    errno.EPERM: "it is not permitted there: fix the permissions, or choose another place",
    errno.EROFS: "this file system is read-only: choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: "a part of this path is a file: rename it, or choose another place",
    errno.EEXIST: "something else has this name: rename it, or choose another place",
    errno.ENOENT: "a folder in this path does not exist: make it, or choose another place",
    errno.ELOOP: "its links form a loop: remove one of them",
    errno.ESTALE: "the network file system has lost it: start again",
    errno.EIO: "the disk or the network file system is failing: have it checked",
    errno.EMFILE: "too many files are open: raise `ulimit -n`",
    errno.ENFILE: "too many files are open on this machine",
}

OF_THE_MACHINE = {  # never caused by a bug of ours
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG),
    *(errno.ELOOP, errno.ESTALE, errno.EIO, errno.EMFILE, errno.ENFILE),
}


def tell_refusal(error: OSError, path: Path | None) -> str:
    """Why the disk refuses a path, and what to do about this cause. `path` is None if it is not known."""
    parts = () if path is None else (path, *path.parents)
    for part in reversed(parts):
        if os.path.islink(part) and not os.path.exists(part):
            return (
                f"{part} is a link to {os.readlink(part)}, which does not exist: make that folder, or remove the link"
            )
        if os.path.exists(part) and not os.path.isdir(part) and part != path:
            return f"{part} is a file, not a folder: {REMEDIES[errno.EEXIST]}"
    remedy = REMEDIES.get(error.errno or 0, "")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        for there in [part for part in parts if os.path.isdir(part)][:1]:
            remedy = f"{shutil.disk_usage(there).free / 1e6:.1f} MB are free there; {remedy}"
    return f"{error}; {remedy}" if remedy else str(error)


def read_regular(path: Path) -> bytes:
    """The bytes of a file. Raises OSError if there is none, and for a pipe or a device, which may never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path.read_bytes()


def sync_to_disk(path: Path) -> None:
    """Force a file's bytes, or a folder's names, onto the disk, if the file system supports it."""
    refused = NOT_FOR_FOLDERS if path.is_dir() else NOT_OFFERED
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in refused:
            raise


def take_lock(
    descriptor: int, kind: int = fcntl.LOCK_EX, *, wait_s: float = 0.0, of_process: bool = False
) -> bool | None:
    """Lock an open file.

    Args:
        wait_s: how long to wait for another process that holds it.
        of_process: take a POSIX record lock, which child processes do not inherit, instead of a flock.

    Returns:
        Whether it is held now; None if the file system has no locks.

    Raises:
        OSError: any other problem.
    """
    call, deadline = (fcntl.lockf if of_process else fcntl.flock), time.monotonic() + wait_s
    while True:
        try:
            call(descriptor, kind | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno in NO_LOCKS:
                return None
            if error.errno not in BUSY:
                raise
        if time.monotonic() >= deadline:
            return False
        time.sleep(LOOK_AGAIN_S)


def link_or_move(temporary: Path, path: Path) -> None:
    """Give a file its name unless another file has it, in one step if there are hard links.

    Raises:
        FileExistsError: another file has it.
    """
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        temporary.replace(path)
    sync_to_disk(path.parent)


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A hidden name in the folder of `path` for the block to write to. When the block succeeds and its bytes are on the
    disk, the file gets its own name, replacing an older one; if the block fails, the file is removed.

    Raises:
        OSError: the disk does not accept it, or the block wrote no file; `path` is as it was before.
    """
    with temporary_name(path) as temporary:
        yield temporary
        publish(temporary, path)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file, complete or not at all; text as UTF-8.

    Raises:
        OSError: the disk does not accept it; the file is as it was before.
    """
    with appearing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def temporary_name(path: Path) -> Iterator[Path]:
    """A hidden name in the folder of `path` that no other process uses; a file left under it is removed at the end."""
    temporary = path.with_name(f".{path.name.lstrip('.')}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def publish(temporary: Path, path: Path) -> None:
    """Give a file or folder its name, once its bytes are on the disk; a file replaces an older one."""
    sync_to_disk(temporary)
    temporary.replace(path)
    sync_to_disk(path.parent)
