"""Small videos for tests."""

from pathlib import Path

import numpy as np

STEP = 12  # grey levels between two frames, more than the codec blurs


def write_mp4(path: Path, frames: int, size: tuple[int, int] = (32, 48)) -> Path:
    """A video whose frame n is grey of level STEP * n all over."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = size
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number in range(frames):
            image_HW3 = np.full((height, width, 3), STEP * number, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image_HW3, format="rgb24")))
        container.mux(stream.encode())
    return path


def number_of(image_HW3: np.ndarray) -> int:
    """Which frame of write_mp4 an image is."""
    return round(float(image_HW3.mean()) / STEP)
