"""Progress of long work: a bar on a terminal, plain lines elsewhere, nothing off rank 0."""

import os
import sys
import time
from typing import Any

from tqdm import tqdm

LINE_EVERY_S = 15.0


class Progress:
    """Count up to `total` and say how fast it goes and how long it will take.

    Args:
        initial: what was done before, by an earlier process.
        enabled: False on all ranks but the first.
    """

    def __init__(self, total: int, label: str, unit: str, *, initial: int = 0, enabled: bool = True) -> None:
        self.total, self.label, self.unit = total, label, unit
        self.done = self.initial = initial
        self.enabled = enabled
        self.started_at = self.line_at = time.monotonic()
        terminal = enabled and sys.stderr.isatty()
        size: Any = terminal_size() if terminal else {}
        self.bar = tqdm(total=total, initial=initial, desc=label, unit=unit, **size) if terminal else None

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Count; `note` stays next to the bar."""
        self.done += amount
        if self.bar is not None:
            self.bar.set_postfix_str(note, refresh=False) if note else None
            self.bar.update(amount)
        elif self.enabled and (time.monotonic() - self.line_at > LINE_EVERY_S or self.done == self.total):
            self.line_at = time.monotonic()
            print(self.line(note), file=sys.stderr, flush=True)

    def say(self, words: str) -> None:
        """A line of its own, which leaves a bar whole."""
        if self.bar is not None:
            tqdm.write(words, file=sys.stderr)
        elif self.enabled:
            print(words, file=sys.stderr, flush=True)

    def line(self, note: str = "") -> str:
        elapsed_s = time.monotonic() - self.started_at
        meter = tqdm.format_meter(
            self.done, self.total, elapsed_s, initial=self.initial, unit=self.unit, bar_format="{n_fmt}/{total_fmt}"
            " [{elapsed}<{remaining}, {rate_fmt}]"
        )  # fmt: skip
        return f"{self.label}: {meter} {note}".rstrip()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.close()


def format_duration(seconds: float) -> str:
    """H:MM:SS, or M:SS below an hour, as bars have it."""
    return tqdm.format_interval(round(seconds))


def terminal_size() -> dict[str, Any]:
    """Of a bar on a terminal that does not say its own, as below `docker exec -t`: tqdm would show nothing there."""
    return {} if all(os.get_terminal_size(sys.stderr.fileno())) else {"ncols": 80, "nrows": 24}
