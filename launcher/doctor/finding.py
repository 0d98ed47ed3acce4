"""The result of one check, and the table of all results."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line of `wsss doctor`.

    Attributes:
        state: ok; warn: a run may fail, or some configs do; fail: no run works.
        what: what was checked.
        found: what was found.
        advice: what to do; empty if all is well.
    """

    state: State
    what: str
    found: str
    advice: str = ""


Check = Callable[[], list[Finding]]


def run_checks(checks: Sequence[Check]) -> list[Finding]:
    """The findings of all checks, in order; a check that raises an error is a finding, too."""
    found: list[Finding] = []
    for check in checks:
        try:
            found += check()
        except Exception as error:  # an error in one check must not prevent the others
            found.append(Finding("fail", check.__name__.replace("_", " "), f"{type(error).__name__}: {error}"))
    return found


def format_findings(findings: Sequence[Finding]) -> str:
    """A line for each finding, with advice below it if needed; at the end, how many are wrong."""
    width = max(len(finding.what) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:4s}  {finding.what:{width}s}  {finding.found}")
        if finding.advice:
            lines.append(f"{'':6s}{'':{width}s}  -> {finding.advice}")
    of_state = {state: sum(finding.state == state for finding in findings) for state in ("ok", "warn", "fail")}
    return "\n".join([*lines, "", ", ".join(f"{count} {state}" for state, count in of_state.items())])
