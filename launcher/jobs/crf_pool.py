"""The host's part of `wsss segment`: the CRF and the files of an image, in worker processes while the device goes on.

It is apart from segment.py because every worker process loads it: nothing heavier than torch.

Shapes: n classes a CRF looks at, H x W pixels of an image as its owner published it.
"""

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import lru_cache
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np

from launcher.config.sections import SegmentConfig
from launcher.errors import RunError
from launcher.jobs import pool as jobs_pool
from shards.folder import ShardFolder
from shards.remote import Place
from shards.schema import encode_mask
from wsss.refine.crf import mean_field

QUEUED = 2  # images per CRF process that wait for it at most: bounds the memory


class Task(NamedTuple):
    """What the device found about one image.

    Attributes:
        label_HW: class ids without a CRF, or None.
        probs_nHW: probabilities of `class_ids` (0 = background) for the CRF, or None.
        cams: label maps of the CAMs by kind.
    """

    number: int
    label_HW: np.ndarray | None
    probs_nHW: np.ndarray | None
    class_ids: tuple[int, ...]
    cams: Mapping[str, np.ndarray]


def crf_workers(settings: SegmentConfig, ranks: int) -> int:
    """Processes of this rank that finish images: its share of the cores, one of which it needs itself."""
    if settings.workers is not None:
        return settings.workers
    return max((os.cpu_count() or 1) // ranks - 1, 1)


@contextmanager
def crf_pool(workers: int) -> Iterator[Executor | None]:
    """Worker processes, or None for 0. What waits is dropped when the block fails."""
    if workers == 0:
        yield None
        return
    # Spawned, since a forked worker would inherit the parent's threads and CUDA state.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=jobs_pool.begin_worker)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def in_order(
    pool: Executor | None, work: Callable[[Task], Any], tasks: Iterable[Task], most_waiting: int
) -> Iterator[Any]:
    """`work` on every task, results in order; at most so many tasks are under way, then the device waits."""
    if pool is None:
        yield from map(work, tasks)
        return
    waiting: deque = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(work, task))
            while len(waiting) >= most_waiting or (waiting and waiting[0].done()):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise RunError("a CRF process died, most likely for want of memory: lower segment.workers") from error


def finish(folder: Place, settings: SegmentConfig, task: Task) -> tuple[int, str, dict[str, bytes]]:
    """CRF where wanted, and the members of the output shard: (number, key, {extension: bytes})."""
    shards = opened(folder)
    label_HW = task.label_HW
    if task.probs_nHW is not None:
        try:
            label_HW = crf_label(shards.image(task.number), task.probs_nHW, task.class_ids, settings)
        except ValueError as error:
            raise RunError(f"{shards.where(task.number)}: {error}") from error
    assert label_HW is not None
    about = {
        "class_ids": np.unique(label_HW).tolist(),
        "group": shards.groups[task.number],
        "size": list(label_HW.shape),
    }
    members = {"json": json.dumps(about, sort_keys=True).encode(), "png": encode_mask(label_HW)}
    members |= {f"{kind}.png": encode_mask(cam_HW) for kind, cam_HW in task.cams.items()}
    return task.number, shards.keys[task.number], members


def crf_label(
    image_HW3: np.ndarray, probs_nHW: np.ndarray, class_ids: Sequence[int], settings: SegmentConfig
) -> np.ndarray:
    """(H, W) uint8 class ids after the CRF; a single class needs none."""
    best_HW = np.zeros(probs_nHW.shape[1:], dtype=np.intp)
    if len(class_ids) > 1:
        best_HW = mean_field(image_HW3, probs_nHW, **settings.mean_field.model_dump()).argmax(0)
    return np.asarray(class_ids, dtype=np.uint8)[best_HW]


@lru_cache(maxsize=4)
def opened(folder: Place) -> ShardFolder:
    """Once per process."""
    return ShardFolder(folder)
