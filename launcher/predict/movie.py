"""Frames and their times -> an mp4 that browsers play; the file appears only when it is complete."""

from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from launcher.files import publish, temporary_name
from shards.batches.augment import resize

TICKS = 1000  # of the clock, per second


class Movie:
    """Writes a clip frame by frame; all frames get the size of the first one, minus a pixel if a side is odd.

    Args:
        rate: frames per second, for the encoder; players use the times.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self.path, self.rate = path, max(round(rate), 1)
        self.stack, self.stream, self.last = ExitStack(), None, -1
        self.container: Any = None

    def __enter__(self) -> "Movie":
        from av import open as open_video

        self.temporary = self.stack.enter_context(temporary_name(self.path))
        options = {"movflags": "+faststart"}  # plays before it is loaded completely
        self.container = open_video(str(self.temporary), "w", format="mp4", options=options)
        return self

    def add(self, image_HW3: np.ndarray, time_s: float) -> None:
        from av import VideoFrame

        if self.stream is None:
            self.stream = self.begin(image_HW3.shape[0] // 2 * 2, image_HW3.shape[1] // 2 * 2)
        stream: Any = self.stream
        if abs(image_HW3.shape[0] - stream.height) > 1 or abs(image_HW3.shape[1] - stream.width) > 1:
            image_HW3 = resize(image_HW3, (stream.height, stream.width))
        cut = np.ascontiguousarray(image_HW3[: stream.height, : stream.width])
        frame = VideoFrame.from_ndarray(cut, format="rgb24")
        self.last = max(round(time_s * TICKS), self.last + 1)
        frame.pts, frame.time_base = self.last, Fraction(1, TICKS)
        self.container.mux(stream.encode(frame))

    def begin(self, height: int, width: int) -> Any:
        stream = self.container.add_stream(encoder(), rate=self.rate)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.time_base = Fraction(1, TICKS)
        return stream

    def __exit__(self, kind: Any, *_: object) -> None:
        with self.stack:
            if kind is None and self.stream is not None:
                self.container.mux(self.stream.encode())
            self.container.close()
            if kind is None:
                publish(self.temporary, self.path)


def encoder() -> str:
    """H.264 if this build of FFmpeg has it, else MPEG-4, which not every browser plays."""
    from av.codec import Codec
    from av.codec.codec import UnknownCodecError

    try:
        return Codec("libx264", "w").name
    except UnknownCodecError:
        return "mpeg4"
