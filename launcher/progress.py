"""Progress of long work: a bar on a terminal, plain lines elsewhere; only on rank 0."""

import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

LINE_EVERY_S = 15.0
LINE_WORDS = 100  # characters of a line that is read while it scrolls by


class Progress:
    """Counts up to `total`, and shows the rate and the time left.

    Args:
        initial: number done before, by an earlier process.
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
        """Count; the last `note` remains next to the bar and in the plain lines."""
        self.done += amount
        self.note = note or self.note
        if self.bar is not None:
            self.bar.set_postfix_str(self.note, refresh=False)
            self.bar.update(amount)
        elif self.enabled and (time.monotonic() - self.line_at > LINE_EVERY_S or self.done == self.total):
            self.line_at = time.monotonic()
            say(self.line(), file=sys.stderr)

    def say(self, words: str) -> None:
        """See the function of this name; only on rank 0."""
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
            sys.stderr.flush()  # its end of line, before the next output on stdout


def say(words: str, *, file: Any = None) -> None:
    """Print a line on stdout, or another stream, without breaking a bar on the terminal. All messages during long work
    use it."""
    stream = sys.stdout if file is None else file
    with tqdm.external_write_mode(file=stream):  # the bar is drawn again only after this line was written
        stream.write(f"{words}\n")
        stream.flush()


def fit_words(words: Sequence[str]) -> str:
    """As many of these words as fit into a line, but always the first."""
    line = words[0]
    for more in words[1:]:
        if len(line) + len(more) + 2 > LINE_WORDS:
            break
        line += f", {more}"
    return line


def format_duration(seconds: float) -> str:
    """H:MM:SS, or M:SS below an hour, as in bars."""
    return tqdm.format_interval(round(seconds))


def terminal_size() -> dict[str, Any]:
    """The size of a bar on a terminal that does not know its own size, as below `docker exec -t`, where tqdm would show
    nothing."""
    return {} if all(os.get_terminal_size(sys.stderr.fileno())) else {"ncols": 80, "nrows": 24}
