"""RUN/failure.json: why a run ended, for `wsss status` and for whoever looks later. Never a reason for a run to end."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

from launcher.errors import without_traceback
from launcher.files import typed, write_whole
from launcher.run.lock import find_holder

FAILURE = "failure.json"
LONGEST = 4000  # characters of a message


class NotingFailure:
    """Context in which the first process that ends with an exception records it in RUN/failure.json.

    Args:
        run: the run's folder.
        rank: of this process.

    Attributes:
        step: steps done so far; None = not known yet.
    """

    def __init__(self, run: Path, rank: int) -> None:
        self.run, self.rank = run, rank
        self.step: Callable[[], int | None] = lambda: None

    def __enter__(self) -> "NotingFailure":
        if self.rank == 0:
            clear_failure(self.run)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, Exception):
            note_failure(
                self.run,
                kind=type(error).__name__,
                message=without_traceback(str(error)) or type(error).__name__,
                step=self.step(),
                rank=self.rank,
                next_command=getattr(error, "next_command", None),
            )


def note_failure(
    run: Path,
    *,
    kind: str,
    message: str,
    step: int | None = None,
    rank: int | None = None,
    next_command: str | None = None,
) -> None:
    """Write RUN/failure.json, unless another process was first: later errors are consequences of the first.

    Args:
        kind: name of the exception, or `exit`.
        step: steps done.
        next_command: what to do; None = the command that continues the run.
    """
    content = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "step": step,
        "rank": rank,
        "kind": kind,
        "message": message[:LONGEST],
        "next": next_command or continue_command(run),
    }
    with suppress(OSError):
        if not (run / FAILURE).exists():
            write_whole(run / FAILURE, json.dumps(content, indent=1))


def note_exit(run: Path, code: int) -> None:
    """Record what the launcher knows if the processes of a run ended and none of them recorded why."""
    with suppress(OSError):
        if run.is_dir() and find_holder(run) is None:  # who trains it is another start of it, which goes on
            said = f"its processes ended with code {code}, and none of them recorded why; see their output"
            note_failure(run, kind="exit", message=f"{said}. A process that needs too much memory is killed silently")


def clear_failure(run: Path) -> None:
    """Remove RUN/failure.json: a run that starts or continues has not failed yet."""
    with suppress(OSError):
        os.unlink(run / FAILURE)


def read_failure(run: Path) -> dict[str, Any] | None:
    """What RUN/failure.json says; None if there is none, or one that cannot be read."""
    try:
        content = json.loads((run / FAILURE).read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def continue_command(run: Path) -> str:
    """The command that continues a run from its last checkpoint."""
    return typed("train", run / "config.yaml")
