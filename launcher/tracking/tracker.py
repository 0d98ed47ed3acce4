"""Metrics during a run go to RUN/metrics.jsonl, and from there to the sinks in `tracking.to`; only on rank 0.

The run writes to its own folder and never waits for a sink: one thread per sink sends what the folder holds
(sender.py). What a sink did not accept stays in the folder; `wsss track sync RUN` sends it later.
"""

import math
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from launcher.files import Damaged, root_of, set_aside
from launcher.tracking.delivery import Delivery
from launcher.tracking.journal import Journal, read_lines, warn
from launcher.tracking.protocol import Tracker
from launcher.tracking.sender import Sender
from launcher.tracking.sink import Sink
from launcher.tracking.sinks import make_sink
from launcher.tracking.unsent import (
    FILES,
    METRICS,
    TRACKING,
    WANTED,
    begin_wanted,
    change_wanted,
    read_sent,
    read_wanted,
    report_unsent,
)
from shards.remote import Place

CLOSE_S = 30.0  # how long a run that ends waits for its sinks


class RunTracker:
    """A run's folder, and its sinks. No method but `close` waits for anything but the local disk.

    Args:
        run: the run's folder.
        sinks: where it is shown.
        experiment: of MLflow.
        params: logged when the run begins; MLflow does not allow later changes.
        datasets: {context: (name, folder, fingerprint)}.
        headlines: {name of a metric: its name in MLflow} of the few that come first there; the highest value of the
            first is reported as the run's best.
        about: see `tell`.
        resumed_at: lines of metrics.jsonl and pictures after this step are dropped, since the run writes them again;
            None = keep all.
        evaluates_again: also drop those of the evaluation at this step.
        send: False = only write the folder; `wsss track sync` sends it.

    Raises:
        OSError: the run's folder cannot be written to at the start.
    """

    def __init__(
        self,
        run: Path,
        *,
        sinks: Sequence[Sink],
        experiment: str,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        datasets: Mapping[str, tuple[str, Place, str]] | None = None,
        headlines: Mapping[str, str] | None = None,
        about: Mapping[str, Any] | None = None,
        resumed_at: int | None = None,
        evaluates_again: bool = False,
        send: bool = True,
    ) -> None:
        self.run, self.sinks = run, sinks
        self.senders: list[Sender] = []
        (run / TRACKING).mkdir(exist_ok=True)
        sent = [read_sent(run, sink.name) for sink in sinks]
        self.metrics = Journal(run / METRICS, floor=max([0.0, *(state["metrics_until"] for state in sent)]))
        self.files = Journal(run / FILES, floor=max([0.0, *(state["files_until"] for state in sent)]))
        if resumed_at is not None:
            again = resumed_at if evaluates_again else None
            self.metrics.keep(
                lambda line: line["step"] <= resumed_at and not (line["step"] == again and is_evaluation(line))
            )
            self.files.keep(  # only evaluations make pictures
                lambda line: line["step"] is None or (line["step"] <= resumed_at and line["step"] != again)
            )
        try:
            begun = (run / WANTED).is_file() and bool(read_wanted(run))
        except Damaged as error:
            begun = set_aside(run / WANTED, error)
        if not begun:
            begin_wanted(run, experiment, params or {}, tags or {}, datasets or {})
        changes: dict[str, Any] = {"to": [sink.name for sink in sinks]}
        if headlines is not None:
            changes["headlines"] = dict(headlines)
        change_wanted(run, **changes, **({} if resumed_at is None else {"status": "RUNNING", "reason": None}))
        self.leading, self.best = next(iter(headlines or ()), ""), -math.inf
        if about is not None:
            self.tell(**about, best=None)  # the earlier best may belong to a step that is repeated
        for line in read_metrics(run) if self.leading else ():
            self.tell_best(line, int(line["step"]))
        self.senders += [Sender(Delivery(run, sink)) for sink in sinks] if send else []
        for sender in self.senders:
            with suppress(Exception):  # the thread meets and reports the same error; no sink may end a run
                sender.delivery.sink.load()
            sender.start()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.metrics.append({"step": step, **{name: float(value) for name, value in metrics.items()}})
        self.tell_best(metrics, step)
        self.wake()

    def tell_best(self, metrics: Mapping[str, float], step: int) -> None:
        value = metrics.get(self.leading, math.nan)
        if value > self.best:
            self.best = value
            self.tell(best=f"{self.leading} {100 * value:.1f} % at step {step}")

    def image(self, name: str, image: Image.Image, step: int) -> None:
        """Write it to RUN/images, under the name from which MLflow's pages read a picture's step."""
        at_ms = int(time.time() * 1000)
        file = f"images/{name.replace('/', '~')}+step+{step}+timestamp+{at_ms}+{uuid.uuid4()}.png"
        try:
            (self.run / "images").mkdir(exist_ok=True)
            image.save(self.run / file, compress_level=1)
        except OSError as error:
            warn(f"cannot write {self.run / file} ({error}); this picture is lost, the run continues")
            return
        self.files.append({"file": file, "name": name, "step": step})
        self.tell(pictures={name: step})

    def artifact(self, path: Path) -> None:
        """Send a file as it is when its turn comes."""
        file = path.relative_to(self.run) if path.is_relative_to(self.run) else path.resolve()
        self.files.append({"file": str(file), "step": None})
        known = read_wanted(self.run)["about"].get("files", [])
        self.tell(files=[*known, *({file.name} - set(known))])

    def model(self, path: Path, name: str, alias: str) -> None:
        """Register it when its turn comes."""
        model = {"name": name, "alias": alias}
        self.files.append({"file": str(path.relative_to(self.run)), "step": None, "model": model})
        self.wake()

    def tell(self, **about: Any) -> None:
        """Describe the run by `what`, `data`, `folder`, `again` (the command that continues it), `commit` and
        `evaluation`; each replaces its earlier value."""
        try:
            change_wanted(self.run, about={**read_wanted(self.run)["about"], **about})
        except (OSError, Damaged) as error:
            warn(f"cannot write {self.run / WANTED} ({error}); the description of the run in its trackers lacks this")
        self.wake()

    def wake(self) -> None:
        for sender in self.senders:
            sender.wake.set()

    def close(self, status: str | None = "FINISHED", reason: str | None = None) -> bool:
        """Wait until the sinks have everything, for a limited time, and end the run there; report what is left.

        Args:
            status: of the run in its sinks; None = unchanged.
            reason: why it failed.

        Returns:
            Whether every sink has everything.
        """
        try:
            if status is not None:
                change_wanted(self.run, status=status, reason=reason)
        except OSError as error:
            warn(f"cannot write {self.run / WANTED} ({error}); trackers will not show that the run is {status}")
        for journal in (self.metrics, self.files):
            journal.flush()
            if lost := journal.lost + len(journal.held):
                warn(f"{journal.path}: {lost} lines could not be written and are lost")
        for sender in self.senders:
            sender.close()
        until = time.monotonic() + CLOSE_S
        for sender in self.senders:
            sender.wait(max(0.0, until - time.monotonic()))
        unsent = [report_unsent(self.run, sink) for sink in self.sinks]  # each is reported
        return not any(unsent)


class Settings(Protocol):
    """The section `tracking` of a config."""

    @property
    def to(self) -> Sequence[str]: ...

    @property
    def experiment(self) -> str | None: ...


def open_tracker(
    run: Path,
    settings: Settings,
    **options: Any,
) -> Tracker:
    """The tracker of a run, to begin it, continue it or add to it; arguments of RunTracker."""
    return RunTracker(
        run,
        sinks=[make_sink(name) for name in settings.to],
        experiment=settings.experiment or experiment_of(run),
        **options,
    )


def experiment_of(run: Path) -> str:
    """MLflow's experiment of a run whose config names none: its parent folders below the folder of runs, so that the
    runs of a study are side by side; `wsss` without parent folders."""
    around, root = run.absolute().parent, root_of(run)
    return around.relative_to(root).as_posix() if root in around.parents else "wsss"


def is_evaluation(line: Mapping[str, float]) -> bool:
    return any(name.startswith("val/") for name in line)


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The lines of RUN/metrics.jsonl; an incomplete last line, from a killed process, is dropped."""
    return list(read_lines(run / METRICS))
