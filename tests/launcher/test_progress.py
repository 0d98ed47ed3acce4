"""What goes by while something goes on."""

import io
import sys

import pytest

import launcher.progress as module
from launcher.progress import LINE_WORDS, Progress, fit_words, say


def test_plain_lines_off_a_terminal_say_count_rate_time_left_and_the_last_note(capsys, monkeypatch):
    clock = iter(range(0, 10_000, 16))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(clock)))
    with Progress(80_000, "train", "step", initial=1) as progress:
        progress.advance(note="loss 0.5123, 1234.5 images/s")
        progress.advance()  # between two logs
        progress.advance(79_997, note="loss 0.4")
    first, second, last = capsys.readouterr().err.splitlines()
    assert first.startswith("train: 2/80000 [") and "step" in first and first.endswith("loss 0.5123, 1234.5 images/s")
    assert "<" in first and len(first) <= LINE_WORDS  # elapsed < remaining
    assert second.startswith("train: 3/80000 [") and second.endswith("loss 0.5123, 1234.5 images/s")
    assert last.startswith("train: 80000/80000 [") and last.endswith("loss 0.4")


def test_other_ranks_show_no_progress(capsys):
    with Progress(1, "train", "step", enabled=False) as progress:
        progress.advance()
        progress.say("words")
    assert capsys.readouterr().err == ""


class Stream(io.StringIO):
    """One of the two streams of a terminal; what is written waits for a flush, unless it is stderr."""

    def __init__(self, terminal, waits):
        super().__init__()
        self.terminal, self.waits, self.waiting = terminal, waits, ""

    def write(self, text):
        self.waiting += text
        if not self.waits:
            self.flush()
        return len(text)

    def flush(self):
        self.terminal.append(self.waiting)
        self.waiting = ""

    def isatty(self):
        return True


@pytest.mark.parametrize("waits", [False, True])
def test_a_line_is_not_glued_to_a_bar_and_a_bar_not_to_the_next_line(monkeypatch, waits):
    terminal = []
    monkeypatch.setattr(sys, "stdout", Stream(terminal, True))
    monkeypatch.setattr(sys, "stderr", Stream(terminal, waits))
    monkeypatch.setattr(module, "terminal_size", lambda: {"ncols": 80, "nrows": 24})
    with Progress(3, "train", "step") as progress:
        progress.advance(note="loss 0.5")
        say("step 1: words")
        progress.say("left out: a frame")
        progress.advance(2)
    print("done", flush=True)
    shown = "".join(terminal)
    for words in ("step 1: words\n", "left out: a frame\n", "done\n"):
        before = shown[: shown.index(words)]
        assert before.endswith(("\r", "\n")), words
        assert before.rstrip("\n").rpartition("\r")[2].strip() == "" or before.endswith("\n")


def test_a_line_takes_as_many_words_as_it_holds_and_the_first_in_any_case():
    assert fit_words(["step 1", "a", "b"]) == "step 1, a, b"
    assert fit_words(["x" * 95, "abc", "defg"]) == "x" * 95 + ", abc" and len("x" * 95 + ", abc") == LINE_WORDS
    assert fit_words(["x" * 200, "a"]) == "x" * 200
