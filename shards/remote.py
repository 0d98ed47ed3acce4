"""Files at a distance: any fsspec URL; fetched with patience, checked, and reported where it fails for good.

Credentials come from where the store's library looks for them (AWS_..., ~/.aws), never from the URL.
"""

import errno
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from warnings import warn

from shards.schema import DataError
from shards.tars import sha256_of

Place = Path | str  # a local folder or file; or a URL, as text, since Path would make s3:/a of s3://a
Result = TypeVar("Result")

TRIES = 9  # of one file: with the waits below, a store may be away for two to four minutes
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0  # the n-th wait is FIRST 2^(n-1) s and at most LONGEST, plus up to 1 s
CONNECT_S, SILENCE_S = 20, 60  # a server that says nothing for so long has failed this try


class WrongBytes(Exception):
    """Something came, but not what the index says."""


def place_of(text: Place) -> Place:
    """A URL as it is, anything else as a path. Raises DataError for what is neither, or a URL with a password."""
    if isinstance(text, Path):
        return text
    if not isinstance(text, str) or not text:
        raise DataError(f"{text!r} is no place of shards; wanted a folder or a URL such as s3://bucket/train")
    if not is_url(text):
        return Path(text)
    try:
        netloc = urlsplit(text).netloc
    except ValueError as error:
        raise DataError(f"{text}: is no URL ({error}); wanted one such as s3://bucket/train") from error
    if "@" in netloc or {"?", "#"} & set(text):
        raise DataError(
            f"{re.sub('//[^/]*@', '//...@', text.partition('?')[0])}: a URL of shards holds no user, password, '?' or "
            "'#', since it is written into logs and reports; give credentials through the environment (AWS_...)"
        )
    return text.rstrip("/")


def is_url(place: Place) -> bool:
    return isinstance(place, str) and "://" in place


def join(folder: Place, name: str) -> Place:
    return folder / name if isinstance(folder, Path) else f"{folder}/{name}"


def absolute(place: Place) -> str:
    """A place as text that means the same in every working directory."""
    return str(place.resolve()) if isinstance(place, Path) else place


def name_of(place: Place) -> str:
    return place.name if isinstance(place, Path) else place.rpartition("/")[2]


def read_bytes(url: str) -> bytes:
    """A small file, whole. Raises DataError after the last try."""

    def once() -> bytes:
        filesystem, path = file_system(url)
        return filesystem.cat_file(path)

    return patiently(url, once)


def download(url: str, target: Path, size: int, sha256: str, *, tries: int | None = None) -> None:
    """Fetch a file and check it. Raises DataError after the last try (TRIES)."""
    from fsspec.callbacks import Callback

    class Bound(Callback):
        def relative_update(self, inc: int = 1) -> None:
            super().relative_update(inc)
            if self.value > size:
                raise WrongBytes(f"more than {size} bytes, which is what the index says")

    def once() -> None:
        filesystem, path = file_system(url)
        filesystem.get_file(path, str(target), callback=Bound())
        came = target.stat().st_size
        if came != size:
            raise WrongBytes(f"{came} bytes came, the index says {size}: cut short, or changed after it was indexed")
        if sha256_of(target) != sha256:
            raise WrongBytes("its sha256 is not the index's: damaged on the way, or changed after it was indexed")

    patiently(url, once, tries)


def file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it. Made anew in each process, as its connections must be."""
    from fsspec.core import url_to_fs

    options: dict[str, Any] = {}
    protocol = url.partition("://")[0]
    if protocol in ("http", "https"):
        from aiohttp import ClientTimeout

        timeout = ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
        options = {"client_kwargs": {"timeout": timeout}}
    elif protocol in ("s3", "s3a"):
        waits = {"connect_timeout": CONNECT_S, "read_timeout": SILENCE_S, "retries": {"max_attempts": 0}}
        options = {"config_kwargs": waits, "use_listings_cache": False}
    return url_to_fs(url, **options)


def patiently(url: str, once: Callable[[], Result], tries: int | None = None) -> Result:
    """Do it; where trying again can help, again with growing waits, each reported in a warning.

    Raises:
        DataError: it failed for good; names the URL, the number of tries and the last error.
    """
    from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential, wait_random

    def tell(state: RetryCallState) -> None:
        assert state.outcome is not None and state.next_action is not None
        warn(
            f"{url}: try {state.attempt_number} of {tries or TRIES} failed ({described(state.outcome.exception())}); "
            f"the next in {state.next_action.sleep:.1f} s",
            stacklevel=2,
        )

    began = time.monotonic()
    retrying = Retrying(
        retry=retry_if_exception(lambda error: isinstance(error, Exception) and not is_lasting(error)),
        stop=stop_after_attempt(tries or TRIES),
        wait=wait_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S) + wait_random(0, min(1, FIRST_WAIT_S)),
        before_sleep=tell,
        reraise=True,
    )
    try:
        return retrying(once)
    except Exception as error:
        made, took_s = retrying.statistics["attempt_number"], time.monotonic() - began
        raise DataError(
            f"{url}: not fetched after {made} {'try' if made == 1 else 'tries'} in {took_s:.0f} s; last error: "
            f"{described(error)}; {what_to_do(error)}"
        ) from error


def is_lasting(error: BaseException) -> bool:
    """Whether trying again cannot help: not there, not allowed, no library for it, no room on the disk."""
    status = getattr(error, "status", None)
    refused = isinstance(status, int) and 400 <= status < 500 and status not in (408, 425, 429)
    kinds = (FileNotFoundError, PermissionError, ImportError, ValueError, NotImplementedError)
    nobody = type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError")  # of botocore
    return refused or nobody or isinstance(error, kinds) or is_full(error)


def is_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def described(error: BaseException | None) -> str:
    status, message = getattr(error, "status", None), getattr(error, "message", "")
    text = str(error) if status is None else f"{status} {message}"
    return f"{type(error).__name__}: {text}".rstrip(": ")


def what_to_do(error: BaseException) -> str:
    if isinstance(error, ImportError):
        return "install the store's library: pip install 'wsss[s3]' for s3"
    if is_full(error):
        return "the disk of the cache is full: name another with WSSS_CACHE, or lower WSSS_CACHE_GB"
    if isinstance(error, WrongBytes):
        return "compare the store's copy with `wsss shards verify` where the shards were written"
    if is_lasting(error):
        return "check the address and the credentials"
    return "check the store and the network and start again: a run goes on from its last checkpoint"
