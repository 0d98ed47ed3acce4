"""What a check found, and the table of all findings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line of `wsss doctor`.

    Attributes:
        state: ok; warn, a run may work, or not with every config; fail, none does.
        what: was looked at.
        found: there.
        advice: what to do; empty where all is well.
    """

    state: State
    what: str
    found: str
    advice: str = ""


Check = Callable[[], list[Finding]]


def run_checks(checks: Sequence[Check]) -> list[Finding]:
    """The findings of all checks, in order; a check that fails itself is a finding, too."""
    found: list[Finding] = []
    for check in checks:
        try:
            found += check()
        except Exception as error:  # whatever it is, the others still say something
            found.append(Finding("fail", check.__name__.replace("_", " "), f"{type(error).__name__}: {error}"))
    return found


def format_findings(findings: Sequence[Finding]) -> str:
    """A line for each; advice below what needs it; how many are wrong at the end."""
    width = max(len(finding.what) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:4s}  {finding.what:{width}s}  {finding.found}")
        if finding.advice:
            lines.append(f"{'':6s}{'':{width}s}  -> {finding.advice}")
    of_state = {state: sum(finding.state == state for finding in findings) for state in ("ok", "warn", "fail")}
    return "\n".join([*lines, "", ", ".join(f"{count} {state}" for state, count in of_state.items())])
