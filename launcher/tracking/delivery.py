"""What a run's folder holds -> MLflow, in order, each thing once, whenever MLflow answers.

The folder is the queue. RUN/metrics.jsonl holds the points and RUN/tracking/files.jsonl names pictures and artifacts;
RUN/tracking/wanted.json says what the MLflow run is to look like, RUN/tracking/sent.json how far MLflow has it. Points
have fixed times and pictures fixed names, so that sending one twice, because an answer was lost, adds nothing.
"""

import fcntl
import json
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from launcher.files import write_whole
from launcher.tracking.journal import lines_from, tell
from launcher.tracking.mlflow_store import begin_run, find_experiment, find_run, has_run, is_refusal, open_client

METRICS = "metrics.jsonl"
TRACKING = "tracking"
WANTED, SENT, FILES, LOCK = (f"{TRACKING}/{name}" for name in ("wanted.json", "sent.json", "files.jsonl", "lock"))
BATCH = 1000  # points that are read and sent together; as many as MLflow takes in one request


class Busy(RuntimeError):
    """Another process sends this run."""


class Left(RuntimeError):
    """Nobody waits for this delivery any more."""


class Delivery:
    """Sends one run. Not for two threads; a lock on the folder keeps other processes out.

    Args:
        run: the run's folder, with what Tracker wrote.
        dead: the run's process is gone: a run that says RUNNING is told to MLflow as KILLED.
    """

    def __init__(self, run: Path, *, dead: bool = False) -> None:
        self.run, self.dead = run, dead
        self.sent: dict[str, Any] = {}
        self.client: Any = None
        self.lock: IO[str] | None = None
        self.left = threading.Event()  # set by who no longer waits
        self.counts = {"points": 0, "files": 0}  # sent by this object
        self.read_until = 0  # byte of metrics.jsonl up to which MLflow has it; what is before need not be read again

    def send(self) -> None:
        """Send everything that MLflow does not have.

        Raises:
            Busy: another process sends this run.
            Exception: whatever MLflow, its database or the network raises; what was taken before is remembered.
        """
        self.take_lock()
        wanted = json.loads((self.run / WANTED).read_text())
        try:
            if self.client is None:
                self.connect(wanted)
            self.send_metrics()
            self.send_files()
            self.send_status(wanted["status"])
        except Exception:
            self.client = None  # the next attempt looks whether the run is still there
            raise

    def take_lock(self) -> None:
        """Held until the process ends or `release`; loader processes do not inherit it (POSIX record locks)."""
        if self.lock is not None:
            return
        file = (self.run / LOCK).open("a")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.close()
            raise Busy(f"another process sends {self.run}") from error
        self.lock = file
        self.sent = read_sent(self.run)

    def release(self) -> None:
        if self.lock is not None:
            self.lock.close()
            self.lock = None

    def connect(self, wanted: dict[str, Any]) -> None:
        """Find the run in MLflow, or create it; one that is not there any more gets everything anew."""
        client, artifacts = open_client()
        run_id = self.sent["run_id"]
        if run_id is None or not has_run(client, run_id):
            experiment_id = find_experiment(client, wanted["experiment"], artifacts)
            run_id = find_run(client, experiment_id, wanted["key"])
            if run_id is None:
                created = client.create_run(experiment_id, run_name=wanted["name"], tags={"wsss.key": wanted["key"]})
                run_id = created.info.run_id
            self.read_until = 0
            self.save(**new_sent(run_id))
        if not self.sent["begun"]:
            for what, why in begin_run(client, run_id, wanted["params"], wanted["tags"], wanted["datasets"]):
                self.refuse(what, why)
            self.save(begun=True)
        self.client = client

    def send_metrics(self) -> None:
        for lines in batches(unsent(self.run / METRICS, self.sent["metrics_until"], self.read_until)):
            self.send_points([point for line, _ in lines for point in points_of(line)])
            last, self.read_until = lines[-1]
            self.save(metrics_until=last["time"])

    def send_points(self, points: list[Any]) -> None:
        from mlflow.exceptions import MlflowException

        self.go_on()
        points = [point for point in points if f"metric {point.key}" not in self.sent["refused"]]
        try:
            self.client.log_batch(self.sent["run_id"], metrics=points)  # the client cuts it into requests
            self.counts["points"] += len(points)
        except MlflowException as error:
            if not is_refusal(error) or not has_run(self.client, self.sent["run_id"]):
                raise
            if len(points) == 1:
                self.refuse(f"metric {points[0].key}", error)
                return
            for point in points:  # only what is wrong is left out
                self.send_points([point])

    def send_files(self) -> None:
        from mlflow.exceptions import MlflowException

        lines = [line for line, _ in unsent(self.run / FILES, self.sent["files_until"])]
        newest = {line["file"]: line["time"] for line in lines}
        for line in lines:
            self.go_on()
            path = self.run / line["file"]
            try:
                if not path.is_file():
                    self.refuse(f"file {path}", "it is gone")
                elif newest[line["file"]] == line["time"]:
                    self.send_file(path, line["step"] is not None)
            except MlflowException as error:
                if not is_refusal(error) or not has_run(self.client, self.sent["run_id"]):
                    raise
                self.refuse(f"file {path}", error)
            self.save(files_until=line["time"])

    def send_file(self, path: Path, picture: bool) -> None:
        """An artifact as it is; a picture like `log_image`, but under a name that stays when it is sent twice."""
        run_id = self.sent["run_id"]
        self.client.log_artifact(run_id, str(path), "images" if picture else None)
        if picture:
            from mlflow.tracking.multimedia import compress_image_size
            from PIL import Image

            with tempfile.TemporaryDirectory() as folder, Image.open(path) as image:
                small = Path(folder) / f"{path.stem}+compressed.webp"
                compress_image_size(image).save(small)
                self.client.log_artifact(run_id, str(small), "images")
            self.client.set_tag(run_id, "mlflow.loggedImages", True)
        self.counts["files"] += 1

    def send_status(self, wanted: str | None) -> None:
        status = "KILLED" if self.dead and wanted == "RUNNING" else wanted
        if status in (None, self.sent["status"]):
            return
        if status == "RUNNING":
            self.client.update_run(self.sent["run_id"], status=status)
        else:
            self.client.set_terminated(self.sent["run_id"], status)
        self.save(status=status)

    def refuse(self, what: str, why: object) -> None:
        """What MLflow will never take is left out, told once and remembered."""
        tell(f"MLflow refuses {what} of {self.run}, it is left out there: {why}")
        self.save(refused={**self.sent["refused"], what: str(why)})

    def save(self, **changes: Any) -> None:
        self.sent = {**self.sent, **changes}
        write_whole(self.run / SENT, json.dumps(self.sent, indent=1))

    def go_on(self) -> None:
        if self.left.is_set():
            raise Left(f"{self.run}: stopped on the way")


def new_sent(run_id: str | None) -> dict[str, Any]:
    """What MLflow has of a run that it has just begun."""
    return {
        "run_id": run_id,
        "begun": False,
        "metrics_until": 0.0,
        "files_until": 0.0,
        "status": None,
        "refused": {},
    }


def read_sent(run: Path) -> dict[str, Any]:
    path = run / SENT
    return json.loads(path.read_text()) if path.is_file() else new_sent(None)


def unsent(path: Path, until: float, start: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Lines after the one of time `until`, each with the byte at which the next one begins."""
    return ((line, end) for line, end in lines_from(path, start) if line["time"] > until)


def waiting(run: Path) -> tuple[int, int, bool]:
    """(lines of metrics, files, whether MLflow lacks the run or its state) that are still to be sent."""
    sent, wanted = read_sent(run), json.loads((run / WANTED).read_text())
    lines = sum(1 for _ in unsent(run / METRICS, sent["metrics_until"]))
    files = sum(1 for _ in unsent(run / FILES, sent["files_until"]))
    told = wanted["status"] in (None, sent["status"]) or (wanted["status"], sent["status"]) == ("RUNNING", "KILLED")
    return lines, files, not (sent["begun"] and told)


def batches(lines: Iterable[tuple[dict[str, Any], int]]) -> Iterator[list[tuple[dict[str, Any], int]]]:
    """Lines together as long as their points fit into one request."""
    batch: list[tuple[dict[str, Any], int]] = []
    points = 0
    for line, end in lines:
        if batch and points + len(line) > BATCH:
            yield batch
            batch, points = [], 0
        batch.append((line, end))
        points += len(line)
    if batch:
        yield batch


def points_of(line: dict[str, Any]) -> list[Any]:
    from mlflow.entities import Metric

    at_ms = int(line["time"] * 1000)
    return [Metric(name, value, at_ms, line["step"]) for name, value in line.items() if name not in ("time", "step")]
