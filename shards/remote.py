"""Remote files at any fsspec URL: fetched with retries, checked, and reported if that fails finally.

Credentials come from where the store's library looks for them (AWS_..., ~/.aws), never from the URL.
"""

import errno
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import shorten
from typing import Any, TypeVar
from urllib.parse import urlsplit

from shards.schema import DataError
from shards.tars import sha256_of

log = logging.getLogger(__name__)  # for warnings, which go to stderr without a handler

Place = Path | str  # a local folder or file; or a URL, as text, since Path would make s3:/a of s3://a
Result = TypeVar("Result")

TRIES = 9  # for one file; with the waits below, a store may be away for three minutes
PATIENCE_S = 240.0  # no try for a file begins later; the order of all limits is in docs/decisions.md, D-102
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0  # the n-th wait is FIRST 2^(n-1) s and at most LONGEST, plus up to 1 s
CONNECT_S, SILENCE_S = 20, 60  # a try fails if the server is silent for so long
SLOWEST = 1000.0  # bytes per second, over SILENCE_S; a slower try fails
LONGEST_TEXT = 500  # characters of an error; some libraries list all places that they tried
PACKAGES = {  # names on PyPI of the packages that fsspec needs for a protocol
    **dict.fromkeys(("s3", "s3a"), "'wsss[s3]'"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("az", "abfs", "abfss"), "adlfs"),
}


class WrongBytes(Exception):
    """The bytes that arrived differ from what the index says."""


class TooSlow(Exception):
    """Bytes arrive so slowly that a file would take forever."""


def place_of(text: Place) -> Place:
    """A URL unchanged, anything else as a path. Raises DataError for what is neither, or a URL with a password."""
    if isinstance(text, Path):
        return text
    if not isinstance(text, str) or not text:
        raise DataError(f"{text!r} is not a place for shards; wanted a folder or a URL such as s3://bucket/train")
    if not is_url(text):
        return Path(text)
    try:
        netloc = urlsplit(text).netloc
    except ValueError as error:
        raise DataError(f"{text}: is not a URL ({error}); wanted one such as s3://bucket/train") from error
    user, at, _ = netloc.rpartition("@")
    of_azure = ":" not in user and PACKAGES.get(text.partition("://")[0]) == "adlfs"  # abfss://CONTAINER@ACCOUNT
    if (at and not of_azure) or {"?", "#"} & set(text):
        raise DataError(
            f"{re.sub('//[^/]*@', '//...@', text.partition('?')[0])}: a URL of shards holds no user, password, '?' or "
            "'#', since it is written into logs and reports; give credentials through the environment (AWS_...)"
        )
    return text.rstrip("/")


def is_url(place: object) -> bool:
    return isinstance(place, str) and "://" in place


def join(folder: Place, name: str) -> Place:
    return folder / name if isinstance(folder, Path) else f"{folder}/{name}"


def absolute(place: Place) -> str:
    """A place as text, valid in every working directory."""
    return str(place.resolve()) if isinstance(place, Path) else place


def name_of(place: Place) -> str:
    return place.name if isinstance(place, Path) else place.rpartition("/")[2]


def parent_of(place: Place) -> Place:
    return place.parent if isinstance(place, Path) else place.rpartition("/")[0]


def read_bytes(url: str) -> bytes:
    """A small file as a whole. Raises DataError after the last try; no try begins after PATIENCE_S."""

    def once() -> bytes:
        filesystem, path = file_system(url)
        return filesystem.cat_file(path, timeout=PATIENCE_S) if filesystem.async_impl else filesystem.cat_file(path)

    return patiently(url, once)


def download(
    url: str, target: Path, size: int, sha256: str, *, tries: int | None = None, waited_s: float = 0.0
) -> None:
    """Fetch a file and check it.

    Args:
        waited_s: how long this process has already waited for it, which is subtracted from PATIENCE_S.

    Raises:
        DataError: after the last try (TRIES), or after PATIENCE_S.
    """
    from fsspec.callbacks import Callback

    class Bound(Callback):
        began = 0.0

        def relative_update(self, inc: int = 1) -> None:
            super().relative_update(inc)
            if self.value > size:
                raise WrongBytes(f"more than the {size} bytes that the index states")
            took_s = time.monotonic() - self.began
            if took_s > SILENCE_S and self.value < SLOWEST * took_s:
                raise TooSlow(f"only {self.value} of {size} bytes arrived in {took_s:.0f} s: the store is too slow")

    def once() -> None:
        filesystem, path = file_system(url)
        bound = Bound()
        bound.began = time.monotonic()
        filesystem.get_file(path, str(target), callback=bound)
        came = target.stat().st_size
        if came != size:
            raise WrongBytes(
                f"{came} bytes arrived, but the index states {size}: cut short, or changed after it was indexed"
            )
        if sha256_of(target) != sha256:
            raise WrongBytes("its sha256 differs from the index: damaged on the way, or changed after it was indexed")

    patiently(url, once, tries, waited_s)


def file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it. Each process makes its own, since connections require it."""
    from fsspec.config import conf
    from fsspec.core import url_to_fs

    options: dict[str, Any] = {}
    protocol = url.partition("://")[0]
    if protocol in ("http", "https"):
        from aiohttp import ClientTimeout

        timeout = ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
        # trust_env: use http_proxy, https_proxy and no_proxy, as curl and MLflow do
        asked = {**conf.get("http", {}), **conf.get(protocol, {})}.get("client_kwargs", {})
        options = {"client_kwargs": {"timeout": timeout, "trust_env": True, **asked}}
    elif protocol in ("s3", "s3a"):
        waits = {"connect_timeout": CONNECT_S, "read_timeout": SILENCE_S, "retries": {"max_attempts": 0}}
        asked = {**conf.get("s3", {}), **conf.get(protocol, {})}.get("config_kwargs", {})
        options = {"config_kwargs": {**waits, **asked}, "use_listings_cache": False}
    elif protocol in ("gs", "gcs"):
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it prints a traceback for each try; we report them
    return url_to_fs(url, **options)


def patiently(
    url: str, once: Callable[[], Result], tries: int | None = None, waited_s: float = 0.0, *, done: str = "fetched"
) -> Result:
    """Call `once`; if trying again can help, try again after growing waits, each reported in the log.

    Args:
        done: what `once` does, as a participle for messages.

    Raises:
        DataError: it failed finally; names the URL, the number of tries and the last error.
    """
    from tenacity import (
        RetryCallState,
        Retrying,
        retry_if_exception,
        wait_exponential,
        wait_random,
    )

    def tell(state: RetryCallState) -> None:
        assert state.outcome is not None and state.next_action is not None
        log.warning(
            "%s: try %d of %d failed (%s); the next in %.1f s",
            url,
            state.attempt_number,
            tries or TRIES,
            described(state.outcome.exception()),
            state.next_action.sleep,
        )

    def enough(state: RetryCallState) -> bool:
        gone_s = waited_s + (state.seconds_since_start or 0.0)
        return state.attempt_number >= (tries or TRIES) or gone_s + state.upcoming_sleep > PATIENCE_S

    began = time.monotonic()
    retrying = Retrying(
        retry=retry_if_exception(lambda error: isinstance(error, Exception) and not is_lasting(error)),
        stop=enough,
        wait=wait_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S) + wait_random(0, min(1, FIRST_WAIT_S)),
        before_sleep=tell,
        reraise=True,
    )
    try:
        return retrying(once)
    except Exception as error:
        made, took_s = retrying.statistics["attempt_number"], time.monotonic() - began
        raise DataError(
            f"{url}: not {done} after {made} {'try' if made == 1 else 'tries'} in {took_s:.0f} s; last error: "
            f"{described(error)}; {what_to_do(error, url, done)}"
        ) from error


def is_lasting(error: BaseException) -> bool:
    """Whether trying again cannot help: missing, not permitted, no library for it, no room on the disk."""
    status, code = answer_of(error)
    passes = status in (408, 425, 429) or code in PASSING_CODES
    refused = not passes and (status is not None and 400 <= status < 500)
    # s3fs turns answers that it does not know, such as 400 for an expired token, into this errno
    refused = refused or (status is None and isinstance(error, OSError) and error.errno == errno.EINVAL)
    kinds = (FileNotFoundError, PermissionError, ImportError, ValueError, NotImplementedError)
    nobody = type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError")  # from botocore
    return refused or nobody or isinstance(error, kinds) or is_full(error)


PASSING_CODES = ("RequestTimeout", "RequestTimeoutException", "SlowDown", "Throttling", "ThrottlingException")


def answer_of(error: BaseException | None) -> tuple[int | None, str]:
    """(HTTP status, the store's own code) of a store's answer, from its library's error or the cause of that."""
    for name in ("status", "status_code", "code"):  # of aiohttp, Azure, gcsfs
        if isinstance(status := getattr(error, name, None), int):
            return status, str(getattr(error, "error_code", None) or "")  # of Azure
    while error is not None:  # s3fs raises an OSError from botocore's answer
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return status, str(response.get("Error", {}).get("Code", ""))
        error = error.__cause__
    return None, ""


def is_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def described(error: BaseException | None) -> str:
    status, message = getattr(error, "status", None), getattr(error, "message", "")
    text = str(error) if status is None else f"{status} {message}"
    code = answer_of(error)[1]
    text = text.partition("\nRequestId:")[0]  # Azure adds the whole answer
    text += f" ({code})" if code and not code.isdigit() and code not in text else ""
    text = re.sub(r"//[^/@\s]*@", "//...@", text)  # a password in the address of a store or proxy
    return f"{type(error).__name__}: {shorten(text, LONGEST_TEXT)}".rstrip(": ")


def what_to_do(error: BaseException, url: str, done: str = "fetched") -> str:
    if isinstance(error, ImportError) or str(error).startswith("Protocol not known"):
        package = PACKAGES.get(url.partition("://")[0])
        return f"install the store's library: pip install {package}" if package else "see what fsspec needs for it"
    if is_full(error):
        return "the disk of the cache is full: name another with WSSS_CACHE, or lower WSSS_CACHE_GB"
    if isinstance(error, WrongBytes):
        return "compare the store's copy with `wsss shards verify` where the shards were written"
    if is_lasting(error) and done != "fetched":
        return "see that the bucket is there and that these credentials may write to it (they may have expired)"
    if is_lasting(error):
        return "check the address and the credentials (an expired token, a wrong clock)"
    return "check the store and the network and start again: a run resumes from its last checkpoint"
