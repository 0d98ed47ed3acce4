"""Damaged training samples that were replaced: counted over all ranks and listed in RUN/skipped.jsonl."""

from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from launcher.errors import RunError
from launcher.progress import say
from launcher.tracking.journal import Journal, read_lines

SKIPPED = "skipped.jsonl"
Skip = dict[str, Any]  # key, replaced_by, why; in the file also the step that was logged next


class Skips:
    """The run's damaged samples; a resumed run goes on counting.

    Args:
        limit: data.max_skipped, the number of different samples; 0 = none, and the loader itself stops at the first.
    """

    def __init__(self, run: Path, limit: int, accelerator: Accelerator) -> None:
        self.path, self.limit, self.accelerator = run / SKIPPED, limit, accelerator
        self.known = read_skipped(run) if limit else {}
        self.fresh: list[Skip] = []  # of this rank since the last count

    def collect(self, batch: dict[str, Any]) -> None:
        """Record the replaced samples of one of this rank's micro-batches."""
        self.fresh += [skip for skip in batch.get("skipped", ()) if skip]

    def count(self, step: int) -> dict[str, float]:
        """Add up the counts of all ranks, print what is new and return the metric for the log. Called by all ranks at
        the same step.

        Raises:
            RunError: on every rank, more different samples than the limit, with their list.
        """
        if not self.limit:
            return {}
        everywhere: list[Skip] = gather_object(self.fresh)
        self.fresh = []
        new = {skip["key"]: {"step": step, **skip} for skip in everywhere if skip["key"] not in self.known}
        self.known |= new
        if new and self.accelerator.is_main_process:
            journal = Journal(self.path)
            for skip in new.values():
                journal.append(skip)
            say(f"step {step}: damaged samples replaced:\n  {list_skips(new)}")
        if len(self.known) > self.limit:
            raise RunError(
                f"{len(self.known)} damaged samples by step {step}, data.max_skipped allows {self.limit}; fix or "
                f"remove them, or allow more (they are listed in {self.path}):\n  {list_skips(self.known)}"
            )
        return {"train/skipped_samples": float(len(self.known))}

    def print_summary(self) -> None:
        """At the end of a run in which samples were replaced, how many."""
        if self.known and self.accelerator.is_main_process:
            print(f"{len(self.known)} damaged samples were replaced by their neighbours; {self.path} lists them")


def list_skips(skips: dict[str, Skip]) -> str:
    """The first twenty, a line each."""
    return "\n  ".join(f"{skip['why']} (replaced by '{skip['replaced_by']}')" for skip in [*skips.values()][:20])


def read_skipped(run: Path) -> dict[str, Skip]:
    """{key: skip} of earlier starts of a run."""
    return {skip["key"]: skip for skip in read_lines(run / SKIPPED)}
