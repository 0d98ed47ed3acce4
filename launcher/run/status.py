"""The state of runs, from the files in their folders: state, step, loss, time left, reason."""

import dataclasses
import statistics
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from launcher.config.file import read_content
from launcher.errors import ConfigError, RunError
from launcher.progress import format_duration
from launcher.run import steps
from launcher.run.failure import FAILURE, continue_command, read_failure
from launcher.run.folder import CONFIG, find_runs
from launcher.run.lock import find_holder
from launcher.tracking.journal import read_lines
from launcher.tracking.unsent import METRICS, WANTED, read_wanted

RECENT = 20  # lines of metrics.jsonl that say how fast a run is
HEADINGS = ("run", "state", "step", "loss", "left", "reason")


@dataclasses.dataclass(frozen=True)
class Status:
    """The state of one run.

    Attributes:
        state: running; finished; failed (an error, see reason); stopped (as requested); killed (it ended without a
            message); unknown (its files or file system do not tell).
        step, steps: the last one that was logged or saved, and how many there are to do; None = not known.
        loss: as last logged.
        left_s: seconds to the last step at the recent pace, validation left out; None unless it runs.
        reason: why it is in this state, and what to do.
    """

    run: Path
    state: str
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    left_s: float | None = None
    reason: str = ""

    def as_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "run": str(self.run)}


def read_statuses(folder: Path) -> list[Status]:
    """States of the run in a folder and of those below it, including those that failed before they had a config.

    Raises:
        RunError: there is none.
    """
    failed = {path.parent for path in [folder / FAILURE, *folder.glob(f"**/{FAILURE}")] if path.is_file()}
    runs = sorted({*find_runs(folder), *failed})
    if not runs:
        raise RunError(f"{folder}: no run in or below it; train one with `wsss train CONFIG`")
    return [read_status(run) for run in runs]


def read_status(run: Path) -> Status:
    """Of one run. What cannot be read is its reason: one run must not hide the others."""
    try:
        step, loss, pace_s = read_progress(run)
        wanted = (read_content(run / CONFIG).get("train") or {}).get("steps") if (run / CONFIG).is_file() else None
        total = wanted if isinstance(wanted, int) else None
        saved = [steps.step_number(folder) for folder in steps.checkpoints(run)]
        state, reason = read_state(run, done=total is not None and total in saved)
    except (ConfigError, RunError, OSError, ValueError, KeyError, TypeError) as error:
        return Status(run, "unknown", reason=f"{type(error).__name__}: {error}")
    told = [step, (read_failure(run) or {}).get("step")]
    step = max([*saved, *(number for number in told if isinstance(number, int))], default=None)
    left_s = None
    if state == "running" and None not in (pace_s, total, step):
        left_s = pace_s * (total - step)  # type: ignore[operator]  # none of them is None
    return Status(run, state, step, total, loss, left_s, reason)


def read_state(run: Path, *, done: bool) -> tuple[str, str]:
    """(state, reason); `done`: its last checkpoint is there."""
    try:
        holder = find_holder(run)
    except OSError as error:
        return "unknown", f"this file system does not say whether it is being trained ({error})"
    if holder is not None:
        return "running", holder
    if failure := read_failure(run):
        where = [] if failure.get("step") is None else [f"after step {failure['step']}"]
        where += [] if failure.get("rank") is None else [f"on rank {failure['rank']}"]
        kind = f"{failure.get('kind')} {' '.join(where)}".strip()
        return "failed", f"{kind}: {failure.get('message')}; next: {failure.get('next')}"
    if done:
        return "finished", ""
    status = read_wanted(run)["status"] if (run / WANTED).is_file() else None
    if status == "KILLED":
        return "stopped", f"it was asked to; next: {continue_command(run)}"
    return "killed", f"it ended without a message, as after kill -9; next: {continue_command(run)}"


def read_progress(run: Path) -> tuple[int | None, float | None, float | None]:
    """(last step, its loss, seconds per step) of metrics.jsonl; None where it does not say."""
    lines = [line for line in read_lines(run / METRICS) if "train/loss" in line][-RECENT:]
    if not lines:
        return None, None, None
    pairs = [(b["time"] - a["time"], b["step"] - a["step"]) for a, b in pairwise(lines)]
    paces = [seconds / done for seconds, done in pairs if done > 0]
    # the median: a pair that spans a validation, or the time between two starts, counts once
    return lines[-1]["step"], lines[-1]["train/loss"], statistics.median(paces) if paces else None


def format_statuses(statuses: Sequence[Status]) -> str:
    """A table; a reason is on one line."""
    rows = [HEADINGS]
    for one in statuses:
        step = "-" if one.step is None else str(one.step)
        rows.append((
            str(one.run),
            one.state,
            step if one.steps is None else f"{step}/{one.steps}",
            "-" if one.loss is None else f"{one.loss:.4f}",
            "-" if one.left_s is None else format_duration(one.left_s),
            " ".join(one.reason.split()),
        ))  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS) - 1)]
    lines = ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[-1]]) for row in rows]
    return "\n".join(line.rstrip() for line in lines)
