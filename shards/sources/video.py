"""Video files -> frames, exact by decoding and as stored (timed_frames: upright); a rotation tag is reported."""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shards.pixels import upright
from shards.schema import DataError

EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"  # elements of a mkv or webm: its head, then all else
EBML_HEAD = 4096  # bytes within which the second one begins
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
    check_whole(path)
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
    check_whole(path)
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


def check_whole(path: Path) -> None:
    """Raise DataError if a clip is shorter than it says itself: an mp4 that ends inside one of its boxes, a mkv, webm
    or avi. Cut after a frame, it would decode to fewer frames."""
    size, at = path.stat().st_size, 0
    with path.open("rb") as file:
        if (wanted := stated_size(file.read(EBML_HEAD))) > size:
            raise DataError(
                f"{path}: does not decode whole: it should have {wanted} bytes, the file ends at {size}: cut short; "
                "fetch the file again"
            )
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


def stated_size(head: bytes) -> int:
    """The bytes that an avi, mkv or webm should have by its head; 0 if it does not say, as while it is recorded
    (D-191)."""
    if head[:4] == b"RIFF":
        content = int.from_bytes(head[4:8], "little")
        return 0 if content in (0, 2**32 - 1) else 8 + content
    if head[:4] != EBML:
        return 0
    about, at = element_size(head, 4)
    at += about or 0
    if head[at : at + 4] != SEGMENT:
        return 0
    inside, begin = element_size(head, at + 4)
    return 0 if inside is None else begin + inside


def element_size(head: bytes, at: int) -> tuple[int | None, int]:
    """(size of the element of a mkv whose size stands at `at`, where it begins); None = not known yet."""
    if at >= len(head) or head[at] == 0:
        return None, at
    length = 9 - head[at].bit_length()  # the first set bit says how many bytes hold the size
    bits = 7 * length
    size = int.from_bytes(head[at : at + length], "big") & ((1 << bits) - 1)
    return None if size == (1 << bits) - 1 else size, at + length


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
