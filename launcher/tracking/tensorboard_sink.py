"""Metrics and pictures as TensorBoard's event files in RUN/tensorboard.

Events are written directly, not by torch's SummaryWriter: that writes from its own thread, so a full disk is noticed
late or never; its first file does not say at which step it starts; and two files of the same second may be read in the
wrong order.
"""

import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from launcher.tracking.sink import Point, Refused
from wsss.extras import needs

FOLDER = "tensorboard"
EVENTS = "events.out.tfevents."  # TensorBoard reads files with this in their name, sorted by name


class TensorboardSink:
    """One event file per delivery; parameters and artifacts are in the run's folder anyway."""

    name, title, package = "tensorboard", "TensorBoard", "tensorboard"
    rewinds = True
    link = ""

    def __init__(self) -> None:
        self.folder = Path()
        self.writer: Any = None

    def load(self) -> None:
        with needs("tensorboard"):
            import tensorboard.compat.proto.event_pb2
            import tensorboard.summary.writer.record_writer  # noqa: F401

    def connect(self, run: Path, wanted: Mapping[str, Any], run_id: str | None) -> str:
        self.load()
        self.folder = run / FOLDER
        self.close()  # after an error the file may end in half an event, which nothing may follow
        return run_id if run_id and any(self.folder.glob(f"{EVENTS}*")) else secrets.token_hex(8)

    def begin(self, wanted: Mapping[str, Any]) -> Iterator[tuple[str, Exception]]:
        return iter(())

    def rewind(self, step: int) -> None:
        """Begin a file which says that the run was started at this step.

        TensorBoard then forgets this step and all later ones in earlier files. It takes the first such start for the
        run's own, so the first file must have one, too.
        """
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.close()
        self.folder.mkdir(exist_ok=True)
        numbers = [int(path.name.removeprefix(EVENTS).split(".")[0]) for path in self.folder.glob(f"{EVENTS}*")]
        number = max([int(time.time()), *(number + 1 for number in numbers)])
        path = self.folder / f"{EVENTS}{number:010d}.{socket.gethostname()}.{os.getpid()}"
        self.writer = RecordWriter(path.open("xb"))
        now = time.time()
        self.write(Event(wall_time=now, file_version="brain.Event:2"))
        self.write(Event(wall_time=now, step=step, session_log=SessionLog(status=SessionLog.START)))
        self.writer.flush()

    def send_points(self, points: Sequence[Point]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        for (at, step), line in groupby(points, lambda point: (point.time, point.step)):
            values = [Summary.Value(tag=point.name, simple_value=point.value) for point in line]
            self.write(Event(wall_time=at, step=step, summary=Summary(value=values)))
        self.writer.flush()

    def send_picture(self, path: Path, name: str, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        try:
            with Image.open(path) as image:
                width, height = image.size
                channels = len(image.getbands())
        except UnidentifiedImageError as error:  # damaged by a power cut
            raise Refused(f"{path} is no picture") from error
        encoded = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=path.read_bytes())
        value = Summary.Value(tag=name, image=encoded)
        self.write(Event(wall_time=path.stat().st_mtime, step=step, summary=Summary(value=[value])))
        self.writer.flush()

    def send_file(self, path: Path) -> None: ...

    def send_model(self, path: Path, name: str, alias: str) -> None: ...

    def send_about(self, about: Mapping[str, Any]) -> None: ...

    def send_status(self, status: str, reason: str | None) -> None: ...

    def write(self, event: Any) -> None:
        self.writer.write(event.SerializeToString())

    def close(self) -> None:
        if self.writer is not None:
            writer, self.writer = self.writer, None
            with suppress(OSError):  # the disk is full; what was not written is sent again
                writer.close()
