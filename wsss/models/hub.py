"""The Hugging Face hub as a source of pretrained weights, on machines that cannot reach it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.utils import get_session


def answers() -> bool:
    """Whether the hub answers, through this machine's proxies, within HF_HUB_ETAG_TIMEOUT (10 s)."""
    answered: list[bool] = []

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
            answered.append(True)
        except Exception:  # of whatever kind: it did not answer
            answered.append(False)

    # a thread, since each of a name's addresses has that much time, and looking the name up has no limit
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(constants.HF_HUB_ETAG_TIMEOUT)
    return answered == [True]


@contextmanager
def without_waiting() -> Iterator[None]:
    """If the hub does not answer, files are taken from its cache, or fetching fails at once; without this, its library
    tries six times for each file, which takes most of a minute.

    Raises:
        OSError: the hub does not answer, and the cache does not have all of it.
    """
    told = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = told or not answers()
    try:
        yield
    except OSError as error:
        if told or not constants.HF_HUB_OFFLINE:
            raise
        raise OSError(f"{constants.ENDPOINT} does not answer") from error
    finally:
        constants.HF_HUB_OFFLINE = told


def explain_cache() -> str:
    """How to bring files from the hub to a machine that cannot reach it."""
    return (
        f"copy the cache of a machine that has fetched it to {constants.HF_HUB_CACHE} (HF_HUB_CACHE names another "
        "folder; HF_HUB_OFFLINE=1 uses what is there without asking the hub)"
    )
