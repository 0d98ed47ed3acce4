"""What lies here or at a URL, by one set of verbs: looked at, listed, written whole, set aside, removed.

At a URL a file appears whole or not at all, as stores of objects promise it; other protocols are refused for what is to
be written. All raise DataError if a store fails, or does not allow it.
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

STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")  # that show no half an object
CHUNK = 1 << 22  # bytes
FORGOTTEN_S = 24 * 3600.0  # after which nobody still sends the parts of a file


def require_store(place: Place) -> None:
    """Raise DataError for a URL of which nobody promises that its files appear whole."""
    protocol, url, _ = str(place).partition("://")
    if is_url(place) and url and protocol not in STORES:
        raise DataError(
            f"{place}: outputs are written to a folder or to an object store ({', '.join(STORES)}://), where files "
            "appear whole or not at all"
        )


def everywhere(place: Place) -> Place:
    """The place as it is called in every working directory."""
    return place.absolute() if isinstance(place, Path) else place


def is_there(place: Place) -> bool:
    """Whether there is a file."""
    return place.is_file() if isinstance(place, Path) else ask(place, lambda store, path: store.info(path)) is not None


def size_of(place: Place) -> int:
    """Bytes of a file. Raises DataError or OSError if it is not there."""
    if isinstance(place, Path):
        return place.stat().st_size
    about = ask(place, lambda store, path: store.info(path))
    if about is None:
        raise DataError(f"{place}: is missing")
    return int(about["size"])


def sha256_at(place: Place) -> str:
    """Of all bytes of a file, of which a store's are read and not kept. Raises DataError if it is not there."""
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
    """The names of the files in a folder; none where there is no such folder."""
    if isinstance(folder, Path):
        return {path.name for path in folder.iterdir() if path.is_file()} if folder.is_dir() else set()
    return {name_of(found.rstrip("/")) for found in ask(folder, lambda store, path: store.ls(path, detail=False)) or ()}


def find_places(folder: Place, pattern: str) -> list[Place]:
    """What lies below a folder and matches a pattern such as cams*/val, by name."""
    if isinstance(folder, Path):
        return sorted(folder.glob(pattern))

    def below(store: Any, path: str) -> list[str]:
        return [found.removeprefix(path).rstrip("/") for found in store.glob(f"{path}/{pattern}")]

    return sorted(f"{folder}{found}" for found in ask(folder, below) or ())  # a path may say less than its URL


def read_if_there(place: Place) -> bytes | None:
    """A small file, whole; None if there is none. Raises OSError if a disk does not give it."""
    if not isinstance(place, Path):
        return ask(place, lambda store, path: store.cat_file(path))
    try:
        return place.read_bytes()
    except FileNotFoundError:
        return None


def write_at(place: Place, content: str | bytes, *, tries: int | None = None) -> None:
    """A small file, whole, in place of an older one. Raises OSError if a disk does not take it."""
    if isinstance(place, Path):
        write_whole(place, content)
        return
    data = content.encode() if isinstance(content, str) else content
    ask(place, lambda store, path: store.pipe_file(path, data), done="written", tries=tries)


def create_at(place: Place, content: str) -> None:
    """A small file, whole. Raises FileExistsError if another process has made one of this name, and as write_at."""
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
    """A file of this machine to a URL, where it appears whole."""
    size = here.stat().st_size

    def send(store: Any, path: str) -> None:
        store.put_file(str(here), path)
        store.invalidate_cache()
        came = store.info(path)["size"]
        if came != size:
            raise WrongBytes(f"{size} bytes were sent, but the store has {came}")

    ask(url, send, done="written")


def rename_at(url: str, name: str) -> None:
    """Give a file of a store another name in its folder, unless another process has."""
    target = file_system(str(join(parent_of(url), name)))[1]
    ask(url, lambda store, path: store.mv(path, target), done="renamed")


def remove(place: Place) -> None:
    """A file, if it is there."""
    if isinstance(place, Path):
        place.unlink(missing_ok=True)
    else:
        ask(place, lambda store, path: store.rm_file(path), done="removed")


def remove_below(url: str) -> None:
    """Whatever a store has below a URL."""
    ask(url, lambda store, path: store.rm(path, recursive=True), done="removed")


def forget_parts(url: str) -> None:
    """Have S3 drop the parts of files that killed writers began to send below a URL: nobody sees them, and they cost
    money. What cannot be dropped stays."""
    if url.partition("://")[0] not in ("s3", "s3a"):
        return
    with suppress(Exception):  # a store without such uploads, or that does not let us list them
        store, path = file_system(url)
        bucket, _, prefix = path.partition("/")
        for begun in store.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix}/").get("Uploads", []):
            if time.time() - begun["Initiated"].timestamp() > FORGOTTEN_S:
                store.call_s3("abort_multipart_upload", Bucket=bucket, Key=begun["Key"], UploadId=begun["UploadId"])


def ask(
    url: str, what: Callable[[Any, str], Result], *, done: str = "fetched", tries: int | None = None
) -> Result | None:
    """What a store answers, asked again where that can help; None where what is read or removed is not there.

    Raises:
        DataError: it failed for good.
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
