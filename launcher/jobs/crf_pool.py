"""The host's part of `wsss segment`: the CRF and the output files of images, in worker processes while the device
continues.

It is separate from segment.py because every worker process loads it: it imports nothing heavier than torch.

Shapes: n classes a CRF looks at, H x W pixels of an image as its owner published it.
"""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from launcher.config.sections import SegmentConfig
from launcher.errors import RunError, naming
from launcher.jobs.crf_sums import require_memory
from launcher.jobs.dask_workers import scheduler
from launcher.jobs.pool import Item, Result, may_start_processes, open_shards, spawned_pool
from launcher.processes.surroundings import count_cores
from shards.image_bytes import encode_mask
from shards.remote import Place
from wsss.refine.crf import mean_field

QUEUED = 2  # images per CRF process that wait for it at most: bounds the memory


class SegmentedImage(NamedTuple):
    """What the device found about one image.

    Attributes:
        label_HW: class ids without a CRF, or None.
        probs_nHW: probabilities of `class_ids` (0 = background) for the CRF, or None.
        cams: label maps of the CAMs by kind.
        left_out: mean probability of the classes that the CRF does not look at; None where it looks at all.
    """

    number: int
    label_HW: np.ndarray | None
    probs_nHW: np.ndarray | None
    class_ids: tuple[int, ...]
    cams: Mapping[str, np.ndarray]
    left_out: float | None = None


def count_crf_workers(settings: SegmentConfig, processes: int) -> int:
    """Number of CRF processes for each process that segments on this machine: its share of the cores, minus the one it
    needs itself. A Dask worker has none unless the settings say so, since its number of cores is not known here."""
    if settings.workers is not None:
        return settings.workers
    if scheduler():
        return 0
    return max(count_cores() // processes - 1, 1)


@contextmanager
def crf_pool(workers: int) -> Iterator[Executor | None]:
    """Worker processes, or None for 0 or where none may be started. Waiting work is dropped if the block fails."""
    if workers == 0 or not may_start_processes():
        yield None
        return
    with spawned_pool(workers) as pool:
        yield pool


def run_in_order(
    pool: Executor | None, work: Callable[[Item], Result], items: Iterable[Item], most_waiting: int
) -> Iterator[Result]:
    """Apply `work` to every item, with results in order; when the maximum number of items is in progress, the device
    waits."""
    if pool is None:
        yield from map(work, items)
        return
    waiting: deque = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            while len(waiting) >= most_waiting or (waiting and waiting[0].done()):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise RunError("a CRF process died, most likely because memory ran out: lower segment.workers") from error


def refine_and_encode(
    folder: Place, fingerprint: str, settings: SegmentConfig, image: SegmentedImage
) -> tuple[int, dict[str, bytes]]:
    """CRF where wanted, and the members of the output shard: (number, {extension: bytes})."""
    shards = open_shards(folder, fingerprint)
    label_HW = image.label_HW
    if image.probs_nHW is not None:
        with naming(shards.where(image.number)):
            label_HW = crf_label(shards.image(image.number), image.probs_nHW, image.class_ids, settings)
    assert label_HW is not None
    about: dict[str, Any] = {
        "class_ids": np.unique(label_HW).tolist(),
        "group": shards.groups[image.number],
        "size": list(label_HW.shape),
    }
    if image.left_out is not None:
        about["left_out"] = round(image.left_out, 4)
    members = {"json": json.dumps(about, sort_keys=True).encode(), "png": encode_mask(label_HW)}
    members |= {f"{kind}.png": encode_mask(cam_HW) for kind, cam_HW in image.cams.items()}
    return image.number, members


def crf_label(
    image_HW3: np.ndarray, probs_nHW: np.ndarray, class_ids: Sequence[int], settings: SegmentConfig
) -> np.ndarray:
    """(H, W) uint8 class ids after the CRF; a single class needs none."""
    best_HW = np.zeros(probs_nHW.shape[1:], dtype=np.intp)
    if len(class_ids) > 1:
        require_memory(settings.mean_field.by, image_HW3.shape[:2], len(class_ids))
        best_HW = mean_field(image_HW3, probs_nHW, **settings.mean_field.model_dump()).argmax(0)
    return np.asarray(class_ids, dtype=np.uint8)[best_HW]
