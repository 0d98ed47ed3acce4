"""Video files -> frames, exact by decoding and as stored (timed_frames: upright); a rotation tag is reported."""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shards.pixels import upright
from shards.schema import DataError

ORIENTATION_OF_TURN = {0: 1, 90: 8, 180: 3, 270: 6}  # degrees counterclockwise -> EXIF


def frame_count(path: Path) -> int:
    """The number of frames that decode; the header's number is not trusted.

    Raises:
        DataError: the file is missing, does not decode, or has no video stream.
    """
    if not path.is_file():
        raise DataError(f"{path}: video is missing")
    about = path.stat()
    return counted(path, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=65536)
def counted(path: Path, size: int, mtime_ns: int) -> int:
    """The cached count, which every frame of a clip needs; size and time tell whether the file is still the same."""
    return decode(path, lambda number: False)[0]


def read_frames(path: Path, indices: Sequence[int]) -> list[np.ndarray]:
    """Frames (H, W, 3) uint8 RGB by position from 0, in the given order; exact, since all frames before are decoded.

    Raises:
        DataError: as frame_count does, or an index is negative or beyond the end.
    """
    if not indices:
        return []
    wanted, last = set(indices), max(indices)
    if min(indices) < 0:
        raise DataError(f"{path}: frame {min(indices)} was asked for; frames are numbered from 0")
    count, found = decode(path, wanted.__contains__, last)
    if count <= last:
        raise DataError(f"{path}: frame {last} was asked for; it has {count}, the last is {count - 1}")
    return [found[index] for index in indices]


def decode(path: Path, keep: Callable[[int], bool], last: int | None = None) -> tuple[int, dict[int, np.ndarray]]:
    """(frames decoded, kept frames by number), stopping after frame `last`."""
    count, found = 0, {}
    for frame in decoded_frames(path):
        if frame.is_corrupt:
            raise DataError(f"{path}: frame {count} is damaged; fetch the file again")
        if keep(count):
            found[count] = frame.to_ndarray(format="rgb24")
        count += 1
        if last is not None and count > last:
            break
    return count, found


def decoded_frames(path: Path) -> Iterator[Any]:
    """The frames of a clip as PyAV objects, in order, one at a time; damaged ones have `is_corrupt`.

    Raises:
        DataError: the file is missing, is cut short, has no video stream, or does not decode to its end.
    """
    if not path.is_file():
        raise DataError(f"{path}: video is missing")
    open_video, FFmpegError = load_decoder(path)
    check_boxes(path)
    count = 0
    try:
        with open_video(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"{path}: has no video stream; wanted a video such as mp4")
            for frame in container.decode(container.streams.video[0]):
                yield frame
                count += 1
    except FFmpegError as error:
        raise DataError(f"{path}: does not decode after {count} frames ({error}); fetch the file again") from error
    if count == 0:
        raise DataError(f"{path}: holds no frame; fetch the file again")


class TimedFrame(NamedTuple):
    """One frame of a clip; image (H, W, 3) uint8 RGB, upright, or None if it is damaged."""

    number: int
    time_s: float
    image: np.ndarray | None


def timed_frames(path: Path, every_s: float | None = None) -> Generator[TimedFrame]:
    """Upright frames with their times since the first one, one at a time, so that memory does not depend on length.

    Args:
        every_s: only the first frame of each period of this many seconds; None = all.

    Raises:
        DataError: as decoded_frames does, or a rotation that is not by quarter turns.
    """
    rate, next_s, start_s, orientation = about_clip(path).rate, 0.0, None, None
    for number, frame in enumerate(decoded_frames(path)):
        at_s = number / rate if frame.time is None else float(frame.time)
        start_s = at_s if start_s is None else start_s
        orientation = orientation_of_frame(frame, path) if orientation is None else orientation
        time_s = at_s - start_s
        if every_s is not None:
            if time_s + 1e-6 < next_s:
                continue
            next_s = (math.floor((time_s + 1e-6) / every_s) + 1) * every_s
        image = None if frame.is_corrupt else upright(frame.to_ndarray(format="rgb24"), orientation)
        yield TimedFrame(number, time_s, image)


class AboutClip(NamedTuple):
    """What the header of a clip says, which may be wrong: frames per second, seconds (0 = not stated)."""

    rate: float
    duration_s: float


def about_clip(path: Path) -> AboutClip:
    """Read the header. Raises DataError if the file is missing, cut short, or cannot be opened as a video."""
    from av import open as open_video
    from av.error import FFmpegError

    if not path.is_file():
        raise DataError(f"{path}: video is missing")
    check_boxes(path)
    try:
        with open_video(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"{path}: has no video stream; wanted a video such as mp4")
            rate = float(container.streams.video[0].average_rate or 25)
            return AboutClip(rate, (container.duration or 0) / 1e6)
    except (FFmpegError, OSError) as error:
        raise DataError(f"{path}: does not open as a video ({error}); fetch the file again") from error


def load_decoder(path: Path) -> tuple[Callable[[str], Any], type[Exception]]:
    """PyAV's `open` and its error; raises DataError if it is not installed."""
    try:
        from av import open as open_video
        from av.error import FFmpegError
    except ModuleNotFoundError as error:
        raise DataError(
            f"{path}: videos are read by the package 'av', which is not installed: pip install 'wsss[video]'"
        ) from error
    return open_video, FFmpegError


def check_boxes(path: Path) -> None:
    """Raise DataError if an mp4 ends inside one of its boxes; cut after a frame, it would decode to fewer frames."""
    size, at = path.stat().st_size, 0
    with path.open("rb") as file:
        while at + 8 <= size:
            file.seek(at)
            header = file.read(16)
            length, kind = int.from_bytes(header[:4], "big"), header[4:8]
            if at == 0 and kind != b"ftyp":
                return  # not an mp4, or the decoder reports what is wrong
            if length == 1:
                length = int.from_bytes(header[8:16], "big")
            if length == 0:  # to the end of the file
                return
            if length < 8 or at + length > size:
                raise DataError(
                    f"{path}: does not decode whole: its box {kind!r} at byte {at} should have {length} bytes, the "
                    f"file ends at {size}: cut short; fetch the file again"
                )
            at += length


def orientation_of_clip(path: Path) -> int:
    """The EXIF orientation (1, 3, 6 or 8) with the meaning of a clip's rotation tag.

    Raises:
        DataError: as frame_count does, or a rotation that is not by quarter turns.
    """
    about = path.stat()
    return tagged(path, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=65536)
def tagged(path: Path, size: int, mtime_ns: int) -> int:
    open_video, _ = load_decoder(path)
    with open_video(str(path)) as container:
        return orientation_of_frame(next(container.decode(container.streams.video[0])), path)


def orientation_of_frame(frame: Any, path: Path) -> int:
    turns = frame.rotation % 360  # degrees, counterclockwise
    if turns not in ORIENTATION_OF_TURN:
        raise DataError(f"{path}: is tagged to be turned by {turns} degrees; wanted quarter turns: encode it upright")
    return ORIENTATION_OF_TURN[turns]
