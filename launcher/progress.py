"""Progress of long work: a bar on a terminal, plain lines elsewhere, nothing off rank 0."""

import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

LINE_EVERY_S = 15.0
LINE_WORDS = 100  # signs in a line that is looked at while it goes by


class Progress:
    """Count up to `total` and say how fast it goes and how long it will take.

    Args:
        initial: what was done before, by an earlier process.
        enabled: False on all ranks but the first.
    """

    def __init__(self, total: int, label: str, unit: str, *, initial: int = 0, enabled: bool = True) -> None:
        self.total, self.label, self.unit = total, label, unit
        self.done = self.initial = initial
        self.note = ""
        self.enabled = enabled
        self.started_at = self.line_at = time.monotonic()
        terminal = enabled and sys.stderr.isatty()
        size: Any = terminal_size() if terminal else {}
        self.bar = tqdm(total=total, initial=initial, desc=label, unit=unit, **size) if terminal else None

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Count; the last `note` stays next to the bar and in the plain lines."""
        self.done += amount
        self.note = note or self.note
        if self.bar is not None:
            self.bar.set_postfix_str(self.note, refresh=False)
            self.bar.update(amount)
        elif self.enabled and (time.monotonic() - self.line_at > LINE_EVERY_S or self.done == self.total):
            self.line_at = time.monotonic()
            say(self.line(), file=sys.stderr)

    def say(self, words: str) -> None:
        """See the function of this name; nothing off rank 0."""
        if self.enabled:
            say(words, file=sys.stderr)

    def line(self) -> str:
        elapsed_s = time.monotonic() - self.started_at
        meter = tqdm.format_meter(
            self.done, self.total, elapsed_s, initial=self.initial, unit=self.unit, bar_format="{n_fmt}/{total_fmt}"
            " [{elapsed}<{remaining}, {rate_fmt}]"
        )  # fmt: skip
        return f"{self.label}: {meter} {self.note}".rstrip()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.close()
            sys.stderr.flush()  # its end of line, before what is said next on stdout


def say(words: str, *, file: Any = None) -> None:
    """A line of its own on stdout, or another stream, that leaves a bar whole if one stands on the terminal: whatever
    is said while something goes on is said by this."""
    stream = sys.stdout if file is None else file
    with tqdm.external_write_mode(file=stream):  # a bar is drawn again only after this line went out
        stream.write(f"{words}\n")
        stream.flush()


def fit_words(words: Sequence[str]) -> str:
    """As many of these words as a line takes, the first ones in any case."""
    line = words[0]
    for more in words[1:]:
        if len(line) + len(more) + 2 > LINE_WORDS:
            break
        line += f", {more}"
    return line


def format_duration(seconds: float) -> str:
    """H:MM:SS, or M:SS below an hour, as bars have it."""
    return tqdm.format_interval(round(seconds))


def terminal_size() -> dict[str, Any]:
    """Of a bar on a terminal that does not say its own, as below `docker exec -t`: tqdm would show nothing there."""
    return {} if all(os.get_terminal_size(sys.stderr.fileno())) else {"ncols": 80, "nrows": 24}
