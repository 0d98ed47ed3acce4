"""Files of raw data in folders, zips and tars: listed once, read without unpacking.

A `Blob` says where one file is and can be sent to worker processes, each of which opens an archive once.
"""

import hashlib
import io
import os
import posixpath
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Literal

from shards.files import appearing, read_regular
from shards.image_bytes import decode_image, encode_image, header_of, turn_upright
from shards.schema import DataError, check_size_of_mask

COMPRESSED = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
ARCHIVES = (".zip", ".tar", *COMPRESSED)
MAX_DEPTH = 8  # of folders below a root
BLOCK = tarfile.BLOCKSIZE
Exif = Literal["keep", "apply"]


@dataclass(frozen=True, slots=True)
class Blob:
    """One file: a plain one at `path`, a member of the zip at `path`, or a span of the tar at `path`."""

    path: str
    member: str = ""
    offset: int = -1
    size: int = -1

    @property
    def name(self) -> str:
        return (self.member or self.path).rpartition("/")[2]

    def __str__(self) -> str:
        return f"{self.path}:{self.member}" if self.member else self.path

    def read(self) -> bytes:
        """All bytes.

        Raises:
            DataError: the file is gone, cut short, or has a wrong checksum.
        """
        try:
            if not self.member:
                return read_regular(Path(self.path))
            if self.offset < 0:
                return opened_zip(self.path).read(self.member)
            data = os.pread(opened(self.path).fileno(), self.size, self.offset)
        except (OSError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:  # or: encrypted
            raise DataError(f"{self}: cannot be read ({error}); fetch it again") from error
        if len(data) != self.size:
            raise DataError(f"{self}: ends after {len(data)} of {self.size} bytes; fetch the archive again")
        return data

    def read_jpeg(self, mask_size: tuple[int, ...] | None = None, exif: Exif = "keep") -> bytes:
        """The bytes of a JPEG unchanged; other formats are encoded once, since shards hold JPEGs.

        Args:
            exif: `keep` the pixels as stored, with their EXIF orientation; or `apply` it, and encode them again.

        Raises:
            DataError: not an image, one that RGB cannot show, or not with the (height, width) of its mask.
        """
        data = self.read()
        if exif == "apply":
            data = turn_upright(data, str(self))
        size, orientation = header_of(data, str(self))
        if mask_size is not None:
            check_size_of_mask(mask_size, size, str(self), orientation)
        if data.startswith(b"\xff\xd8"):
            return data
        return encode_image(decode_image(data, str(self)), orientation=orientation)


@lru_cache(maxsize=8)
def opened_zip(path: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


@lru_cache(maxsize=8)
def opened(path: str) -> BinaryIO:
    return open(path, "rb")  # closed when the cache drops it


def digest_of(blobs: Iterable[Blob]) -> str:
    """16 hex digits that change with any file's name, size or modification time, but not with the folder above."""
    stamps: dict[str, tuple[str, int, int]] = {}
    digest = hashlib.sha256()
    for blob in blobs:
        if blob.path not in stamps:
            stat = os.stat(blob.path)
            stamps[blob.path] = (os.path.basename(blob.path), stat.st_size, stat.st_mtime_ns)
        digest.update(repr((stamps[blob.path], blob.member, blob.offset, blob.size)).encode())
    return digest.hexdigest()[:16]


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVES)


def list_archive(path: Path) -> dict[str, Blob]:
    """{NAME/member: blob} of a zip or an uncompressed tar; NAME is that of the archive without its ending.

    Raises:
        DataError: missing, damaged, cut short, with a link that leads nowhere, or a compressed tar, in which nothing
            can be found without reading all of it.
    """
    if path.name.lower().endswith(COMPRESSED):
        raise DataError(f"{path}: is a compressed tar: unpack it, or `gunzip` it into a plain tar")
    try:
        if path.name.lower().endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                names = [name for name in map(str, archive.namelist()) if is_wanted(name)]
            return {f"{path.stem}/{name}": Blob(str(path.absolute()), name) for name in names}
        with tarfile.open(path, "r:") as tar:
            members = list(tar)
    except (OSError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read as an archive ({error}); fetch it again") from error
    check_end(path, members)
    files = {bare(info.name): info for info in members if not info.isdir() and is_wanted(info.name)}
    return {f"{path.stem}/{name}": span_of(info, files, path) for name, info in files.items()}


def bare(name: str) -> str:
    return posixpath.normpath(name).removeprefix("/")


def span_of(info: tarfile.TarInfo, files: Mapping[str, tarfile.TarInfo], path: Path) -> Blob:
    """Where the bytes of a tar's member are; for a link, those of the member to which it leads.

    Raises:
        DataError: a link to itself or to something not in the tar, or neither a file nor a link.
    """
    name, target, seen = info.name, info, set()
    while target.islnk() or target.issym():
        folder = posixpath.dirname(target.name) if target.issym() else ""
        aim = bare(posixpath.join(folder, target.linkname))
        if aim in seen or aim not in files:
            raise DataError(
                f"{path}: member '{name}' is a link to '{target.linkname}', which is not in the tar; pack the files "
                "themselves (`tar --dereference`)"
            )
        seen.add(aim)
        target = files[aim]
    if not target.isreg() or target.issparse():
        raise DataError(f"{path}: member '{name}' is not a plain file ({target.type!r}); pack it again without it")
    return Blob(str(path.absolute()), name, target.offset_data, target.size)


def check_end(path: Path, members: list[tarfile.TarInfo]) -> None:
    """Raise DataError unless the tar ends with an empty block after the last member that was found.

    Python's reader takes a damaged header, or the end of the file, for the tar's end.
    """
    at = max((info.offset_data + -(-info.size // BLOCK) * BLOCK * info.isreg() for info in members), default=0)
    with path.open("rb") as file:
        file.seek(at)
        block = file.read(BLOCK)
    if block != bytes(BLOCK):
        last = f"its last member '{members[-1].name}'" if members else "the start"
        raise DataError(
            f"{path}: the end of the tar is missing after {last}, at byte {at}: cut short or damaged; fetch it again"
        )


def is_wanted(name: str) -> bool:
    """Whether a name is neither a folder nor one of the files with metadata that macOS packs beside others."""
    return not name.endswith("/") and not name.rpartition("/")[2].startswith("._")


def list_folder(root: Path) -> dict[str, Blob]:
    """{NAME/path below the root: blob}; NAME is that of the root. Hidden files are left out, links are followed.

    Raises:
        DataError: no such folder.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder or archive")
    root = root.absolute()
    files: dict[str, Blob] = {}
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        below = os.path.relpath(folder, root.parent)
        real = os.path.realpath(folder)
        if real in seen or below.count("/") > MAX_DEPTH:
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        seen.add(real)
        files.update({f"{below}/{name}": Blob(f"{folder}/{name}") for name in sorted(names) if name[0] != "."})
    return files


def list_roots(roots: Sequence[Path], archive_names: re.Pattern[str]) -> tuple[list[dict[str, Blob]], list[Path]]:
    """(files of each root that is a folder, archives: the other roots, then those in the folders with such names).

    Raises:
        DataError: a root is missing.
    """
    archives = [root for root in roots if not root.is_dir() and is_archive(root)]
    folders = [list_folder(root) for root in roots if root not in archives]
    for files in folders:
        paths = [Path(blob.path) for blob in files.values()]
        archives += sorted(path for path in paths if is_archive(path) and archive_names.search(path.name))
    return folders, archives


def repacked(path: Path, keep: Callable[[str], bool], folder: Path) -> Path:
    """The members of a compressed tar that `keep` accepts, as an uncompressed hidden tar in FOLDER, made once.

    Raises:
        DataError: damaged.
    """
    made = folder / f".{path.name}.{digest_of([Blob(str(path))])}.tar"
    if made.is_file():
        return made
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with appearing(made) as temporary:
            with tarfile.open(path, "r|*") as packed, tarfile.open(temporary, "w") as plain:
                for info in packed:
                    if keep(info.name) and not info.isdir():
                        reader = packed.extractfile(info) if info.isreg() else None  # links are followed when listed
                        plain.addfile(info, io.BytesIO(reader.read()) if reader else None)
            stat = path.stat()
            os.utime(temporary, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # so that it has the same digest if made again
    except (EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{path}: damaged archive ({error}); fetch it again") from error
    return made


def remove_repacked(paths: Iterable[Path], folder: Path) -> None:
    """Remove what `repacked` made from these archives in FOLDER, also what a killed process left."""
    for path in paths:
        for made in folder.glob(f".{path.name}.*"):
            if made.suffix in (".tar", ".tmp"):
                made.unlink(missing_ok=True)


def digest_of_text(lines: Iterable[str]) -> str:
    """16 hex digits of lines of text."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
