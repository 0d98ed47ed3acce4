"""The interface of a tracker (sink): one file for each, and one line in sinks.py."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol


class Point(NamedTuple):
    name: str
    value: float
    step: int
    time: float  # Unix seconds


class Refused(RuntimeError):
    """The sink will never accept this; any other error means: not now."""


class Aside(RuntimeError):
    """The sink answers, but does not accept this now, such as a file while its file store is not reachable; other
    things are still sent."""


class Busy(RuntimeError):
    """Another process sends this run."""


class Abandoned(RuntimeError):
    """Nothing waits for this delivery any longer."""


class Sink(Protocol):
    """A tracker that shows a run's metrics. It is used by one thread. It may raise any error if it accepts nothing now,
    and Aside if it accepts other things.

    Anything may be sent again, because an answer was lost or a process was killed: that must add nothing, or be hidden
    by `rewind`.

    Attributes:
        name: in `tracking.to`, and of its folder in RUN/tracking.
        title: in messages.
        package: package that must be installed.
        rewinds: whether it can hide steps that it was sent, see `rewind`.
        link: address of the run, once it is connected; "" if there is none to report.
    """

    name: str
    title: str
    package: str
    rewinds: bool
    link: str

    def load(self) -> None:
        """Import all that it needs, in the main thread: a process forked while another thread imports may hang."""

    def connect(self, run: Path, wanted: Mapping[str, Any], run_id: str | None) -> str:
        """Find the run there, or create it.

        Args:
            wanted: what RUN/tracking/wanted.json says about the run.
            run_id: what `connect` returned when the run was last found.

        Returns:
            the run's id there; if it is not `run_id`, everything has to be sent.
        """

    def begin(self, wanted: Mapping[str, Any]) -> Iterator[tuple[str, Exception]]:
        """Give a new run its parameters, tags and datasets.

        Yields:
            (what, why) of the parts that the sink refuses; if `why` is Aside, they are sent again later.
        """

    def rewind(self, step: int) -> None:
        """Hide everything that was sent for this step and later ones; what is still true is sent again."""

    def send_points(self, points: Sequence[Point]) -> None:
        """Raises Refused if one of them is refused."""

    def send_picture(self, path: Path, name: str, step: int) -> None: ...

    def send_file(self, path: Path) -> None: ...

    def send_model(self, path: Path, name: str, alias: str) -> None:
        """Send a trained network in one file as a new version of this model, to which the alias then points."""

    def send_about(self, about: Mapping[str, Any]) -> None:
        """Replace the description of the run, see RunTracker.tell."""

    def send_status(self, status: str, reason: str | None) -> None:
        """Send RUNNING, FINISHED, FAILED or KILLED; `reason`: why it failed."""
