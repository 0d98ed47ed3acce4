"""What a place that shows figures must offer: one file per place, and one line in sinks.py."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol


class Point(NamedTuple):
    name: str
    value: float
    step: int
    time: float  # Unix seconds


class Refused(RuntimeError):
    """The sink will never take this; any other error means: not now."""


class Aside(RuntimeError):
    """The sink answers, but does not take this now, such as a file for a store of files that is not there: it must not
    hold up anything else."""


class Busy(RuntimeError):
    """Another process sends this run."""


class Abandoned(RuntimeError):
    """Nothing waits for this delivery any more."""


class Sink(Protocol):
    """One place that shows a run's figures. Used by one thread; may raise anything when it cannot take anything now,
    Aside when it takes other things.

    What is sent may be sent again, because an answer was lost or a process was killed: that must add nothing, or be
    hidden by `rewind`.

    Attributes:
        name: in `tracking.to`, and of its folder in RUN/tracking.
        title: in messages.
        package: what Python must be able to import.
        rewinds: whether it can hide steps that it was sent, see `rewind`.
        link: where somebody looks at the run, once it is connected; "" where nothing needs to be said.
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
            wanted: what RUN/tracking/wanted.json says of the run.
            run_id: what `connect` returned when the run was last found.

        Returns:
            an id of the run there; another one than `run_id` means that everything has to be sent.
        """

    def begin(self, wanted: Mapping[str, Any]) -> Iterator[tuple[str, Exception]]:
        """Give a new run its parameters, tags and datasets.

        Yields:
            (what, why) of the parts that the sink refuses; where `why` is Aside, they are offered again later.
        """

    def rewind(self, step: int) -> None:
        """Hide whatever was sent of this step and later ones; what is still true is sent again."""

    def send_points(self, points: Sequence[Point]) -> None:
        """Raises Refused if one of them is refused."""

    def send_picture(self, path: Path, name: str, step: int) -> None: ...

    def send_file(self, path: Path) -> None: ...

    def send_model(self, path: Path, name: str, alias: str) -> None:
        """A trained network in one file: a new version of the model of this name, which the alias then means."""

    def send_about(self, about: Mapping[str, Any]) -> None:
        """What there is to say of the run in words, see RunTracker.tell; in place of what was said before."""

    def send_status(self, status: str, reason: str | None) -> None:
        """RUNNING, FINISHED, FAILED or KILLED; `reason`: why it failed."""
