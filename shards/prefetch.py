"""Remote files fetched into the cache before they are needed."""

import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from shards.cache import Cache, Wanted, release
from shards.schema import DataError


class Prefetch:
    """Fetches in the background what is needed next, in one thread that ends with its list or at a newer list."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.asked: tuple[int, Any] | None = None  # process and its newest list, since a fork inherits no thread

    def ask(self, name: Any, files: Iterable[Wanted]) -> None:
        """Fetch these files in their order, unless the newest list already has this name."""
        mine = (os.getpid(), name)
        if self.asked != mine:
            self.asked = mine
            threading.Thread(target=self.work, args=(mine, list(files)), daemon=True).start()

    def work(self, mine: tuple[int, Any], files: list[Wanted]) -> None:
        for wanted in files:
            if self.asked != mine:
                return
            with suppress(DataError):  # the reader that needs it asks again, and reports the error
                descriptor = self.cache.held(wanted)
                if descriptor is None:
                    descriptor = self.cache.fetch(wanted)
                if descriptor is not None:
                    release(descriptor)
