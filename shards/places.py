"""Files in a folder or at a URL: looked up, listed, written whole, moved aside, removed, by the same functions.

At a URL a file appears complete or not at all, as object stores guarantee; other protocols are refused for writing. All
functions raise DataError if a store fails or does not permit it.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from shards.files import link_or_move, sync_to_disk, temporary_name, write_whole
from shards.remote import Place, WrongBytes, file_system, is_url, join, name_of, parent_of, patiently
from shards.schema import DataError
from shards.tars import sha256_of

Result = TypeVar("Result")

STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")  # which never show half an object
CHUNK = 1 << 22  # bytes
FORGOTTEN_S = 24 * 3600.0  # no file takes longer to send in parts


def require_store(place: Place) -> None:
    """Raise DataError for a URL without the guarantee that files appear whole."""
    protocol, url, _ = str(place).partition("://")
    if is_url(place) and url and protocol not in STORES:
        raise DataError(
            f"{place}: outputs are written to a folder or to an object store ({', '.join(STORES)}://), where files "
            "appear whole or not at all"
        )


def everywhere(place: Place) -> Place:
    """The place, valid in every working directory."""
    return place.absolute() if isinstance(place, Path) else place


def is_there(place: Place) -> bool:
    """Whether the file exists."""
    return place.is_file() if isinstance(place, Path) else ask(place, lambda store, path: store.info(path)) is not None


def size_of(place: Place) -> int:
    """Size of a file in bytes. Raises DataError or OSError if it does not exist."""
    if isinstance(place, Path):
        return place.stat().st_size
    about = ask(place, lambda store, path: store.info(path))
    if about is None:
        raise DataError(f"{place}: is missing")
    return int(about["size"])


def sha256_at(place: Place) -> str:
    """sha256 of a file; bytes from a store are read but not kept. Raises DataError if it does not exist."""
    if isinstance(place, Path):
        return sha256_of(place)

    def digest(store: Any, path: str) -> str:
        found = sha256()
        with store.open(path, "rb", cache_type="readahead", block_size=CHUNK) as file:
            while chunk := file.read(CHUNK):
                found.update(chunk)
        return found.hexdigest()

    found = ask(place, digest)
    if found is None:
        raise DataError(f"{place}: is missing")
    return found


def list_names(folder: Place) -> set[str]:
    """The names of the files in a folder; none if the folder does not exist."""
    if isinstance(folder, Path):
        return {path.name for path in folder.iterdir() if path.is_file()} if folder.is_dir() else set()
    return {name_of(found.rstrip("/")) for found in ask(folder, lambda store, path: store.ls(path, detail=False)) or ()}


def find_places(folder: Place, pattern: str) -> list[Place]:
    """Everything below a folder that matches a pattern such as cams*/val, sorted by name."""
    if isinstance(folder, Path):
        return sorted(folder.glob(pattern))

    def below(store: Any, path: str) -> list[str]:
        return [found.removeprefix(path).rstrip("/") for found in store.glob(f"{path}/{pattern}")]

    return sorted(f"{folder}{found}" for found in ask(folder, below) or ())  # a path may lack parts of its URL


def read_if_there(place: Place) -> bytes | None:
    """A small file as a whole; None if there is none. Raises OSError if a disk cannot read it."""
    if not isinstance(place, Path):
        return ask(place, lambda store, path: store.cat_file(path))
    try:
        return place.read_bytes()
    except FileNotFoundError:
        return None


def write_at(place: Place, content: str | bytes, *, tries: int | None = None) -> None:
    """Write a small file as a whole, replacing an older one. Raises OSError if a disk does not accept it."""
    if isinstance(place, Path):
        write_whole(place, content)
        return
    data = content.encode() if isinstance(content, str) else content
    ask(place, lambda store, path: store.pipe_file(path, data), done="written", tries=tries)


def create_at(place: Place, content: str) -> None:
    """Write a small new file as a whole. Raises FileExistsError if another process made it, and as write_at does."""
    if isinstance(place, Path):
        with temporary_name(place) as temporary:
            temporary.write_text(content)
            sync_to_disk(temporary)
            link_or_move(temporary, place)
        return
    there = False

    def create(store: Any, path: str) -> None:
        nonlocal there
        try:
            store.pipe_file(path, content.encode(), mode="create")
        except FileExistsError:
            there = True

    ask(place, create, done="written")
    if there:
        raise FileExistsError(place)


def upload(here: Path, url: str) -> None:
    """Send a local file to a URL, where it appears as a whole."""
    size = here.stat().st_size

    def send(store: Any, path: str) -> None:
        store.put_file(str(here), path)
        store.invalidate_cache()
        came = store.info(path)["size"]
        if came != size:
            raise WrongBytes(f"{size} bytes were sent, but the store has {came}")

    ask(url, send, done="written")


def rename_at(url: str, name: str) -> None:
    """Give a file in a store another name in its folder, unless another process has done it."""
    target = file_system(str(join(parent_of(url), name)))[1]
    ask(url, lambda store, path: store.mv(path, target), done="renamed")


def remove(place: Place) -> None:
    """Remove a file, if it exists."""
    if isinstance(place, Path):
        place.unlink(missing_ok=True)
    else:
        ask(place, lambda store, path: store.rm_file(path), done="removed")


def remove_below(url: str) -> None:
    """Remove everything in a store below a URL."""
    ask(url, lambda store, path: store.rm(path, recursive=True), done="removed")


def forget_parts(url: str) -> None:
    """Make S3 drop the parts of unfinished files that killed writers sent below a URL, which are invisible but cost
    money. Parts that cannot be dropped are left."""
    if url.partition("://")[0] not in ("s3", "s3a"):
        return
    with suppress(Exception):  # a store without such uploads, or that does not permit listing them
        store, path = file_system(url)
        bucket, _, prefix = path.partition("/")
        for begun in store.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix}/").get("Uploads", []):
            if time.time() - begun["Initiated"].timestamp() > FORGOTTEN_S:
                store.call_s3("abort_multipart_upload", Bucket=bucket, Key=begun["Key"], UploadId=begun["UploadId"])


def ask(
    url: str, what: Callable[[Any, str], Result], *, done: str = "fetched", tries: int | None = None
) -> Result | None:
    """A store's answer, asked again if that can help; None if what is to be read or removed does not exist.

    Raises:
        DataError: it failed finally.
    """

    def once() -> Result | None:
        store, path = file_system(url)
        store.invalidate_cache()
        try:
            return what(store, path)
        except FileNotFoundError:
            if done == "written":  # no bucket
                raise
            return None

    return patiently(url, once, tries, done=done)
