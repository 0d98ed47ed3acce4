"""Where figures go while a run goes on: RUN/metrics.jsonl always, and MLflow beside it. Rank 0 only.

The run writes to its own folder and never waits for MLflow: one thread brings what the folder holds to MLflow
(delivery.py). What MLflow did not take stays in the folder; `wsss track sync RUN` sends it later.
MLflow is an SQLite file below runs/ unless MLFLOW_TRACKING_URI says otherwise.
"""

import json
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from launcher.files import RUNS as RUNS
from launcher.files import write_whole
from launcher.tracking.delivery import FILES, METRICS, TRACKING, WANTED, Busy, Delivery, Left, read_sent, waiting
from launcher.tracking.journal import Journal, read_lines, tell
from launcher.tracking.mlflow_store import load_mlflow
from shards.remote import Place, absolute

CLOSE_S = 30.0  # how long a run that ends waits for MLflow
EVERY_S = 2.0  # what is logged meanwhile goes into one request: the thread and the step share the interpreter
FIRST_PAUSE_S, LAST_PAUSE_S = 1.0, 60.0  # between attempts while MLflow does not answer


class NoTracker:
    """What other ranks hold: takes everything, does nothing."""

    run_id: str | None = None

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def image(self, name: str, image: Image.Image, step: int) -> None: ...

    def artifact(self, path: Path) -> None: ...

    def close(self, status: str | None = "FINISHED") -> bool:
        """True: nothing is left to send."""
        return True


class Tracker(NoTracker):
    """MLflow and metrics.jsonl of one run. No method but `close` waits for anything but the local disk.

    Args:
        run: the run's folder.
        experiment: of MLflow.
        params: logged when the run begins; MLflow lets nobody change them afterwards.
        datasets: {context: (name, folder, fingerprint)}.
        resumed_at: lines of metrics.jsonl after this step are dropped, since the run writes them again; None = keep.
        evaluates_again: and so are those of its evaluation at this step.
        send: False = only write the folder; `wsss track sync` sends it.

    Raises:
        OSError: the run's folder cannot be written at the start.
    """

    def __init__(
        self,
        run: Path,
        *,
        experiment: str,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        datasets: Mapping[str, tuple[str, Place, str]] | None = None,
        resumed_at: int | None = None,
        evaluates_again: bool = False,
        send: bool = True,
    ) -> None:
        self.run = run
        (run / TRACKING).mkdir(exist_ok=True)
        sent = read_sent(run)
        self.metrics = Journal(run / METRICS, floor=sent["metrics_until"])
        self.files = Journal(run / FILES, floor=sent["files_until"])
        if resumed_at is not None:
            again = evaluates_again
            self.metrics.keep(
                lambda line: (
                    line["step"] <= resumed_at and not (again and line["step"] == resumed_at and is_evaluation(line))
                )
            )
        if not (run / WANTED).is_file():
            self.want(experiment, params or {}, tags or {}, datasets or {})
        if resumed_at is not None:
            self.want_status("RUNNING")
        self.delivery = Delivery(run)
        self.wake, self.closing = threading.Event(), threading.Event()
        self.thread: threading.Thread | None = None
        if send:
            load_mlflow()
            self.thread = threading.Thread(target=self.send_on, name="tracking", daemon=True)
            self.thread.start()

    @property
    def run_id(self) -> str | None:  # type: ignore[override]
        """Of MLflow; None as long as MLflow did not answer."""
        return read_sent(self.run)["run_id"]

    def want(
        self,
        experiment: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        datasets: Mapping[str, tuple[str, Place, str]],
    ) -> None:
        """Write down what the MLflow run is to look like, for whoever creates it."""
        wanted = {
            "key": uuid.uuid4().hex,  # finds the run again if the answer to its creation was lost
            "experiment": experiment,
            "name": "/".join(self.run.parts[1:]),
            "params": {key: str(value) for key, value in params.items()},
            "tags": dict(tags),
            "datasets": {use: (name, absolute(path), print_) for use, (name, path, print_) in datasets.items()},
            "status": None,  # as MLflow has it
        }
        write_whole(self.run / WANTED, json.dumps(wanted, indent=1))

    def want_status(self, status: str) -> None:
        wanted = json.loads((self.run / WANTED).read_text())
        write_whole(self.run / WANTED, json.dumps({**wanted, "status": status}, indent=1))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.metrics.append({"step": step, **{name: float(value) for name, value in metrics.items()}})
        self.wake.set()

    def image(self, name: str, image: Image.Image, step: int) -> None:
        """Kept in RUN/images under the name by which MLflow's pages know a picture's step."""
        at_ms = int(time.time() * 1000)
        file = f"images/{name.replace('/', '~')}+step+{step}+timestamp+{at_ms}+{uuid.uuid4()}.png"
        try:
            (self.run / "images").mkdir(exist_ok=True)
            image.save(self.run / file, compress_level=1)
        except OSError as error:
            tell(f"cannot write {self.run / file} ({error}); this picture is lost, the run goes on")
            return
        self.files.append({"file": file, "step": step})
        self.wake.set()

    def artifact(self, path: Path) -> None:
        """Send a file as it is when its turn comes."""
        file = path.relative_to(self.run) if path.is_relative_to(self.run) else path.resolve()
        self.files.append({"file": str(file), "step": None})
        self.wake.set()

    def close(self, status: str | None = "FINISHED") -> bool:
        """Wait a bounded time until MLflow has everything, and end its run; say what is left.

        Args:
            status: of the MLflow run; None = as it is.

        Returns:
            Whether MLflow has everything.
        """
        try:
            if status is not None:
                self.want_status(status)
        except OSError as error:
            tell(f"cannot write {self.run / WANTED} ({error}); MLflow will not learn that the run is {status}")
        for journal in (self.metrics, self.files):
            journal.flush()
            if lost := journal.lost + len(journal.held):
                tell(f"{journal.path}: the disk did not take {lost} lines, they are lost")
        self.closing.set()
        self.wake.set()
        if self.thread is not None:
            self.thread.join(CLOSE_S)
            self.delivery.left.set()
        return not left_over(self.run)

    def send_on(self) -> None:
        """The thread: send, wait for more; while MLflow does not answer, try again in growing intervals."""
        pause_s = FIRST_PAUSE_S
        failed = last = False
        while not self.delivery.left.is_set():
            if self.closing.is_set() and not last:
                last, pause_s = True, FIRST_PAUSE_S
            self.wake.clear()
            try:
                self.delivery.send()
            except Left:
                break
            except Exception as error:  # whatever it is, it must not end the run, which needs no MLflow
                if not failed:
                    tell(reason(self.run, error))
                failed = True
                if last and isinstance(error, Busy):
                    break
                (self.delivery.left if last else self.closing).wait(pause_s)
                pause_s = min(2 * pause_s, LAST_PAUSE_S)
                continue
            if failed:
                tell(f"MLflow answers again and has everything of {self.run}")
            failed, pause_s = False, FIRST_PAUSE_S
            if last:
                break
            self.wake.wait()
            self.closing.wait(EVERY_S)
        self.delivery.release()


def reason(run: Path, error: Exception) -> str:
    if isinstance(error, Busy):
        return f"{error}; it also sends what this one wrote"
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return f"MLflow does not take the figures of {run} ({text[:300]}); the run goes on and keeps them in its folder"


def is_evaluation(line: Mapping[str, float]) -> bool:
    return any(name.startswith("val/") for name in line)


def left_over(run: Path) -> bool:
    """Whether MLflow lacks something of a run; says what, and how to send it."""
    lines, files, state = waiting(run)
    if lines or files or state:
        tell(f"MLflow lacks {lines} lines of metrics and {files} files of {run}; later: wsss track sync {run}")
    return bool(lines or files or state)


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The lines of RUN/metrics.jsonl; a last line that a killed process left half written is dropped."""
    return list(read_lines(run / METRICS))
