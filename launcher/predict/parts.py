"""The maps of a clip between its two passes: stored on disk in parts, read in order, smoothed over time."""

import io
import json
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from launcher.files import write_whole
from launcher.predict.outputs import Failure
from launcher.predict.settings import Settings
from launcher.predict.views import Looked
from wsss.tensors import resize


class Seen(NamedTuple):
    """One frame after the first pass."""

    number: int
    time_s: float
    looked: Looked


def parts_of(work: Path) -> list[Path]:
    return sorted(work.glob("part-*.npz"))


def write_part(work: Path, number: int, seen: list[Seen], failures: list[Failure]) -> None:
    """Write a part: maps in float16, one array per frame, since the size may change within a clip."""
    arrays = {f"cam_{n}": each.looked.cam.astype(np.float16) for n, each in enumerate(seen)}
    numbers = [*(each.number for each in seen), *(int(failure.frame or -1) for failure in failures)]
    about = {"failures": failures, "at": max(numbers)}
    buffer = io.BytesIO()
    np.savez(
        buffer,
        allow_pickle=False,
        number_N=np.array([each.number for each in seen], dtype=np.int64),
        time_N=np.array([each.time_s for each in seen]),
        probs_NK=np.array([each.looked.probs for each in seen], dtype=np.float32),
        strength_NK=np.array([each.looked.strength for each in seen], dtype=np.float32),
        about=np.frombuffer(json.dumps(about).encode(), dtype=np.uint8),
        **arrays,
    )
    write_whole(work / f"part-{number:06d}.npz", buffer.getvalue())


def read_part(path: Path, *, cams: bool = False) -> dict[str, Any]:
    """What write_part wrote, with `at`, the number of its last frame, and, with `cams`, the maps as a list."""
    with np.load(path) as arrays:
        found: dict[str, Any] = {name: arrays[name] for name in ("number_N", "time_N", "probs_NK", "strength_NK")}
        found |= json.loads(arrays["about"].tobytes())
        if cams:
            found["cams"] = [arrays[f"cam_{n}"].astype(np.float32) for n in range(len(found["number_N"]))]
        return found


def seen_of(work: Path, settings: Settings, strongest: np.ndarray) -> Iterator[Seen]:
    """The frames of all parts, in order, normalised over the clip if the settings say so."""
    for path in parts_of(work):
        part = read_part(path, cams=True)
        for n, cam in enumerate(part["cams"]):
            strength = part["strength_NK"][n]
            if settings.normalise == "clip":
                share = np.divide(strength, strongest, out=np.zeros_like(strength), where=strongest > 0)
                cam = cam * share[:, None, None]
            yield Seen(int(part["number_N"][n]), float(part["time_N"][n]), Looked(cam, part["probs_NK"][n], strength))


def smoothed(frames: Iterator[Seen], seconds: float) -> Iterator[Seen]:
    """Maps and probabilities averaged over the frames within seconds / 2, with weights that fall to 0 there."""
    half, window, ahead = seconds / 2, deque[Seen](), deque[Seen]()
    for new in frames if half > 0 else ():
        ahead.append(new)
        window.append(new)
        while ahead and ahead[0].time_s + half < new.time_s:
            yield mean_around(ahead.popleft(), window, half)
            while window and ahead and window[0].time_s < ahead[0].time_s - half:
                window.popleft()
    for left in ahead:
        yield mean_around(left, window, half)
    if half <= 0:
        yield from frames


def mean_around(centre: Seen, window: deque[Seen], half: float) -> Seen:
    near = [each for each in window if abs(each.time_s - centre.time_s) <= half]
    weights = np.array([1 - abs(each.time_s - centre.time_s) / half for each in near])
    weights /= weights.sum()
    size = centre.looked.cam.shape[-2:]
    cam = sum(w * at_grid(each.looked.cam, size) for w, each in zip(weights, near, strict=True))
    probs = sum(w * each.looked.probs for w, each in zip(weights, near, strict=True))
    return centre._replace(looked=Looked(np.asarray(cam, np.float32), np.asarray(probs), centre.looked.strength))


def at_grid(cam_Khw: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    return cam_Khw if cam_Khw.shape[-2:] == size else resize(torch.from_numpy(cam_Khw)[None], size)[0].numpy()
