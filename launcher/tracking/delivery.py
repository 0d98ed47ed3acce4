"""Sends what a run's folder holds to one sink, in order, each thing once, when the sink accepts it.

The folder is the queue. RUN/metrics.jsonl holds the points, and RUN/tracking/files.jsonl names pictures and artifacts.
RUN/tracking/wanted.json says how the run should look, RUN/tracking/SINK/sent.json how much of it a sink has. Points
have fixed times and pictures fixed names, so sending one twice, because an answer was lost, adds nothing.
"""

import json
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

from launcher.files import take_lock, write_whole
from launcher.tracking.journal import read_lines_from, warn
from launcher.tracking.points import group_lines, read_points
from launcher.tracking.sink import Abandoned, Aside, Busy, Point, Refused, Sink
from launcher.tracking.unsent import FILES, METRICS, SENT, TRACKING, make_state, read_sent, read_unsent, read_wanted

LOCK = "lock"  # in RUN/tracking/SINK


class Delivery:
    """Sends one run to one sink. Only for one thread; a lock keeps other processes out.

    Args:
        run: the run's folder, with what RunTracker wrote.
        dead: the run's process is gone: a run whose state is RUNNING is reported as KILLED.
    """

    def __init__(self, run: Path, sink: Sink, *, dead: bool = False) -> None:
        self.run, self.sink, self.dead = run, sink, dead
        self.folder = run / TRACKING / sink.name
        self.sent: dict[str, Any] = {}
        self.connected = self.rewound = False
        self.lock: IO[str] | None = None
        self.abandoned = threading.Event()
        self.try_aside = True  # try once more what an earlier delivery set aside
        self.counts = {"points": 0, "files": 0}  # sent by this object
        self.read_until = 0  # byte of metrics.jsonl up to which the sink has everything

    def send(self) -> None:
        """Send everything that the sink does not have. What it does not accept now does not hold up the rest: metrics
        and the run's state go before files, and a file that it does not accept is set aside.

        Raises:
            Busy: another process sends this run.
            Exception: whatever the sink raises; what it accepted before is remembered.
        """
        self.take_lock()
        wanted = read_wanted(self.run)
        try:
            if not self.connected or (self.try_aside and not self.sent["begun"]):
                self.connect(wanted)
            ready = self.rewound or self.rewind()
            failed = self.attempt(self.send_metrics) if ready else None
            failed = self.attempt(partial(self.send_about, wanted["about"])) or failed
            failed = self.attempt(partial(self.send_status, wanted["status"], wanted["reason"])) or failed
            if ready:
                self.send_files()
            if failed is not None:
                raise failed
        except Exception:
            self.connected = False  # the next attempt checks whether the run is still there
            raise

    def attempt(self, part: Callable[[], None]) -> Aside | None:
        """Send a part; returns why the sink does not accept it now, or None if it did."""
        try:
            part()
            return None
        except Aside as error:
            return error

    def take_lock(self) -> None:
        """Take a lock until `release` or the end of the process; loader processes do not inherit it (POSIX record
        locks)."""
        if self.lock is not None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        file = (self.folder / LOCK).open("a")
        held = take_lock(file.fileno(), of_process=True)
        if held is False:
            file.close()
            raise Busy(f"another process is sending {self.run}")
        self.lock = file
        self.dead = self.dead and held is True  # without locks it is not known whether its process is gone
        self.sent = read_sent(self.run, self.sink.name)

    def release(self) -> None:
        if self.lock is not None:
            self.lock.close()
            self.lock = None

    def connect(self, wanted: dict[str, Any]) -> None:
        """Find the run in the sink, or create it; a run that is no longer there is sent again completely."""
        run_id = self.sink.connect(self.run, wanted, self.sent["run_id"])
        if run_id != self.sent["run_id"]:
            self.read_until = 0
            self.save(**make_state(run_id))
        if not self.sent["begun"]:
            later: Aside | None = None
            for what, why in self.sink.begin(wanted):
                if isinstance(why, Aside):
                    later = why
                else:
                    self.refuse(what, why)
            self.save(begun=later is None)
            if self.sink.link:
                warn(f"{self.sink.title} shows {self.run}: {self.sink.link}")
            if later is not None:
                warn(
                    f"{self.sink.title} does not accept all parameters, tags or data sets of {self.run} at present: "
                    f"{later}"
                )
        self.connected, self.rewound = True, False

    def rewind(self) -> bool:
        """Before anything is sent, let the sink hide what may be wrong there, and send it again.

        A resumed run has cut its lines after the checkpoint, and a killed process may have sent more than it noted: the
        former at or after the last step noted as sent, the latter in what is sent next.

        Returns:
            False if there was nothing to send; what was written since then waits for the next time.
        """
        if not self.sink.rewinds:
            return True
        had: list[dict[str, Any]] = []
        new: list[dict[str, Any]] = []
        for path, until in ((METRICS, "metrics_until"), (FILES, "files_until")):
            for line, _ in read_lines_from(self.run / path, 0):
                (had if line["time"] <= self.sent[until] else new).append(line)
        if not new:
            return False
        had = [line for line in had if line["step"] is not None]  # artifacts have none
        steps = [line["step"] for line in new if line["step"] is not None]
        step = min([*steps, *([max(line["step"] for line in had)] if had else [])], default=0)
        self.sink.rewind(step)
        again = [line for line in had if line["step"] >= step]
        for group in group_lines((line, 0) for line in again if "file" not in line):
            self.send_points([point for line, _ in group for point in read_points(line)])
        for line in again:
            if "file" in line and (self.run / line["file"]).is_file():
                self.try_file(line)
        self.rewound = True
        return True

    def send_metrics(self) -> None:
        for lines in group_lines(read_unsent(self.run / METRICS, self.sent["metrics_until"], self.read_until)):
            self.send_points([point for line, _ in lines for point in read_points(line)])
            last, self.read_until = lines[-1]
            self.save(metrics_until=last["time"])

    def send_points(self, points: Sequence[Point]) -> None:
        self.stop_if_abandoned()
        points = [point for point in points if f"metric {point.name}" not in self.sent["refused"]]
        try:
            self.sink.send_points(points)
            self.counts["points"] += len(points)
        except Refused as error:
            if len(points) == 1:
                self.refuse(f"metric {points[0].name}", error)
                return
            for point in points:  # leave out only what is wrong
                self.send_points([point])
        except Aside:
            if len(points) == 1:
                raise
            half = len(points) // 2  # a proxy may accept only small requests
            self.send_points(points[:half])
            self.send_points(points[half:])

    def send_files(self) -> None:
        if self.try_aside:
            self.try_aside = False
            for of_file in list(self.sent["aside"].values()):
                self.stop_if_abandoned()
                self.try_file(of_file["line"])
        lines = [line for line, _ in read_unsent(self.run / FILES, self.sent["files_until"])]
        newest = {line["file"]: line["time"] for line in lines}
        for line in lines:
            self.stop_if_abandoned()
            if newest[line["file"]] == line["time"]:
                self.try_file(line)
            self.save(files_until=line["time"])

    def try_file(self, line: dict[str, Any]) -> None:
        """Send a file; if the sink does not accept it, it is left out, or set aside to be tried again later."""
        path, aside = self.run / line["file"], {**self.sent["aside"]}
        known = aside.pop(line["file"], None)
        try:
            if path.is_file():
                self.send_file(line)
            else:
                self.refuse(f"file {path}", "it is gone")
        except Refused as error:
            self.refuse(f"file {path}", error)
        except Aside as error:
            if not self.sent["aside"]:  # the number of the others is reported at the end
                warn(f"{self.sink.title} does not accept the file {path}, which is kept for later: {error}")
            aside[line["file"]] = {"line": line, "why": " ".join(str(error).split())[:300]}
        if known is not None or aside != self.sent["aside"]:
            self.save(aside=aside)

    def send_file(self, line: dict[str, Any], tries: int = 2) -> None:
        """Raises Aside if the sink does not accept it twice; the first time, an answer may have been lost."""
        path = self.run / line["file"]
        try:
            if "model" in line:
                self.sink.send_model(path, **line["model"])
            elif line["step"] is None:
                self.sink.send_file(path)
            else:
                self.sink.send_picture(path, line["name"], line["step"])
        except Aside:
            if tries == 1:
                raise
            return self.send_file(line, tries - 1)
        self.counts["files"] += 1

    def send_about(self, about: dict[str, Any]) -> None:
        if about != self.sent["about"]:
            self.sink.send_about(about)
            self.save(about=about)

    def send_status(self, wanted: str | None, reason: str | None) -> None:
        status = "KILLED" if self.dead and wanted == "RUNNING" else wanted
        if status is None or status == self.sent["status"]:
            return
        self.sink.send_status(status, reason)
        self.save(status=status)

    def refuse(self, what: str, why: object) -> None:
        """Leave out what the sink will never accept; it is reported once and remembered."""
        if what in self.sent["refused"]:
            return
        warn(f"{self.sink.title} refuses {what} of {self.run}, which is left out there: {why}")
        self.save(refused={**self.sent["refused"], what: str(why)})

    def save(self, **changes: Any) -> None:
        self.sent = {**self.sent, **changes}
        write_whole(self.folder / SENT, json.dumps(self.sent, indent=1))

    def stop_if_abandoned(self) -> None:
        if self.abandoned.is_set():
            raise Abandoned(f"{self.run}: stopped before everything was sent")
