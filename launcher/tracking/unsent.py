"""How a run should look in its sinks, what each of them has, and what is left to send."""

import json
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from launcher.files import Damaged, read_json, take_lock, typed, write_whole
from launcher.tracking.journal import LOCK_WAIT_S, read_lines_from, warn
from launcher.tracking.sink import Busy, Sink
from shards.remote import Place, absolute

METRICS = "metrics.jsonl"
TRACKING = "tracking"
WANTED, FILES = f"{TRACKING}/wanted.json", f"{TRACKING}/files.jsonl"
SENT = "sent.json"  # in RUN/tracking/SINK
LISTED = 5  # maximum of set-aside files that are listed with their reasons


def read_wanted(run: Path) -> dict[str, Any]:
    """How the run should look in its sinks, which `to` names."""
    return read_json(run / WANTED)


def begin_wanted(
    run: Path,
    experiment: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    datasets: Mapping[str, tuple[str, Place, str]],
) -> None:
    """Write how the run should look in a sink, for the process that creates it there."""
    wanted: dict[str, Any] = {
        "key": uuid.uuid4().hex,  # finds the run again if the answer to its creation was lost
        "experiment": experiment,
        "name": "/".join(run.parts[1:]).removeprefix(f"{experiment}/"),  # lists show only its beginning
        "params": {key: str(value) for key, value in params.items()},
        "tags": dict(tags),
        "datasets": {use: (name, absolute(path), print_) for use, (name, path, print_) in datasets.items()},
        "to": [],
        "headlines": {},
        "about": {},
        "status": None,  # unchanged
        "reason": None,
    }
    write_whole(run / WANTED, json.dumps(wanted, indent=1))


def change_wanted(run: Path, **changes: Any) -> None:
    """Change some of it, under a lock, since a run may be evaluated while it is trained.

    Raises:
        OSError: it cannot be written.
    """
    with (run / FILES).open("ab") as file:
        take_lock(file.fileno(), wait_s=LOCK_WAIT_S)  # without a lock, the last writer wins
        wanted = read_wanted(run)
        if {**wanted, **changes} != wanted:
            write_whole(run / WANTED, json.dumps({**wanted, **changes}, indent=1))


def make_state(run_id: str | None) -> dict[str, Any]:
    """What a sink has of a run that was just begun there."""
    return {
        "run_id": run_id,
        "begun": False,
        "metrics_until": 0.0,
        "files_until": 0.0,
        "status": None,
        "about": {},  # from wanted.json
        "refused": {},  # {what it will never accept: why}
        "aside": {},  # {file that it did not accept: its line and why}; see Aside
    }


def read_sent(run: Path, sink: str) -> dict[str, Any]:
    """What a sink has of a run; nothing if that file is damaged, since sending again adds nothing."""
    path = run / TRACKING / sink / SENT
    try:
        return read_json(path) if path.is_file() else make_state(None)
    except Damaged as error:
        warn(f"{error}; what {sink} has of {run} is sent again")
        return make_state(None)


def read_unsent(path: Path, until: float, start: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Lines after the one with time `until`, each with the byte at which the next one begins."""
    return ((line, end) for line, end in read_lines_from(path, start) if line["time"] > until)


def count_unsent(run: Path, sink: str) -> tuple[int, int, bool]:
    """What is still to be sent, set aside or not: (lines of metrics, files, whether the sink lacks the run, its
    description or its state)."""
    sent, wanted = read_sent(run, sink), read_wanted(run)
    status, about = wanted["status"], wanted["about"]
    lines = sum(1 for _ in read_unsent(run / METRICS, sent["metrics_until"]))
    files = sum(1 for _ in read_unsent(run / FILES, sent["files_until"]))
    has_status = status in (None, sent["status"]) or (status, sent["status"]) == ("RUNNING", "KILLED")
    return lines, files + len(sent["aside"]), not (sent["begun"] and has_status and about == sent["about"])


def report_unsent(run: Path, sink: Sink) -> bool:
    """Report what a sink lacks of a run, and how to send it; returns whether anything is lacking."""
    lines, files, state = count_unsent(run, sink.name)
    if lines or files or state:
        later = typed("track", "sync", run)
        warn(f"{sink.title} lacks {lines} lines of metrics and {files} files of {run}; to send them later: {later}")
        aside = read_sent(run, sink.name)["aside"]
        for file in list(aside)[:LISTED]:
            warn(f"set aside: {file}: {aside[file]['why']}")
        if len(aside) > LISTED:
            warn(f"and {len(aside) - LISTED} more; {run / TRACKING / sink.name / SENT} lists them all")
    return bool(lines or files or state)


def explain(run: Path, sink: Sink, error: Exception) -> str:
    """Why a sink has not accepted what a run sent, on one line."""
    if isinstance(error, Busy):
        return f"{error}; it also sends what this one wrote"
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return (
        f"{sink.title} does not accept the metrics of {run} ({text[:300]}); the run continues and keeps them in its "
        "folder"
    )
