"""Shards per second of a job in this process, in several processes, and over Dask workers of this machine.

The work of a shard is the exact CRF of a few small images, as in `wsss refine`, without files.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from launcher.config.sections import MeanFieldConfig
from launcher.errors import RunError
from launcher.jobs.dask_workers import dask_crew
from launcher.jobs.pool import as_they_come, spawned_pool
from wsss.extras import is_installed
from wsss.refine.crf import mean_field

START_S = 120.0  # how long a scheduler may take to report its address


def refine_a_shard(images: int, side_px: int, number: int) -> float:
    """The CRF of this many images of noise; returns a number that depends on all results."""
    rng, total = np.random.default_rng(number), 0.0
    options = MeanFieldConfig(iterations=2, by="exact").model_dump()
    for _ in range(images):
        image_HW3 = rng.integers(0, 256, (side_px, side_px, 3), dtype=np.uint8)
        probs_nHW = rng.random((2, side_px, side_px), dtype=np.float32)
        total += float(mean_field(image_HW3, probs_nHW / probs_nHW.sum(0), **options)[0].sum())
    return total


def measure(*, shards: int, images: int, side_px: int, workers: Sequence[int] = (1, 2)) -> dict[str, Any]:
    """{"here": shards/s, "pool": {workers: shards/s}, "dask": the same, "overhead": {"pool", "dask": how much longer a
    shard takes with one worker than here, as a share of the time here}}; without `dask` if it is not installed.

    Raises:
        RunError: the scheduler does not start, or results differ.
    """
    work = partial(refine_a_shard, images, side_px)
    torch.set_num_threads(1)  # as in each worker
    work(0)
    began = time.perf_counter()
    wanted = [work(number) for number in range(shards)]
    found: dict[str, Any] = {"here": shards / (time.perf_counter() - began), "pool": {}}
    for count in workers:
        with spawned_pool(count) as pool:
            found["pool"][count] = rate(pool, work, wanted, count)
    if is_installed("distributed"):
        found["dask"] = {}
        for count in workers:
            with loopback_cluster(count) as address, dask_crew(address) as crew:
                crew.client.wait_for_workers(count, timeout=START_S)
                found["dask"][count] = rate(crew.executor, crew.there(work), wanted, count, crew.outcome)
    found["overhead"] = {
        engine: found["here"] / found[engine][1] - 1 for engine in ("pool", "dask") if 1 in found.get(engine, {})
    }
    return found


def rate(
    executor: Executor,
    work: Callable[[int], Any],
    wanted: Sequence[float],
    workers: int,
    outcome_of: Callable[..., Any] | None = None,
) -> float:
    """Shards per second, after every worker has loaded what it needs. Raises RunError if results differ."""
    options = () if outcome_of is None else (outcome_of,)
    list(as_they_come(executor, work, range(4 * workers), *options))
    began = time.perf_counter()
    found = dict(as_they_come(executor, work, range(len(wanted)), *options))
    elapsed_s = time.perf_counter() - began
    if [found[number] for number in range(len(wanted))] != list(wanted):
        raise RunError("workers found other numbers than this process")
    return len(wanted) / elapsed_s


@contextmanager
def loopback_cluster(workers: int) -> Iterator[str]:
    """The address of a scheduler on this machine with this many workers of one thread, all of which end with the
    block."""
    from launcher.processes.surroundings import find_ours

    with TemporaryDirectory() as folder:
        told = Path(folder) / "scheduler.json"
        environment = {**os.environ, **find_ours(), "OMP_NUM_THREADS": "1"}
        common = ["--scheduler-file", str(told), "--no-dashboard"]
        argvs = [["scheduler", "--host", "127.0.0.1", "--port", "0", *common]]
        argvs += [["worker", "--nthreads", "1", "--no-nanny", "--local-directory", folder, *common]] * workers
        started = []
        try:
            for argv in argvs:
                whole = [sys.executable, "-m", "dask", *argv]
                started.append(subprocess.Popen(whole, env=environment, stderr=subprocess.DEVNULL))
                deadline = time.monotonic() + START_S
                while not told.is_file() or not told.read_text().endswith("}"):
                    if started[0].poll() is not None or time.monotonic() > deadline:
                        raise RunError("`dask scheduler` did not start; run it to see why")
                    time.sleep(0.05)
            yield json.loads(told.read_text())["address"]
        finally:
            for process in reversed(started):
                process.kill()
                process.wait()


def format_rates(found: dict[str, Any]) -> str:
    """The result of `measure` as text."""
    lines = [f"in this process      {found['here']:8.2f} shards/s"]
    for engine, name in (("pool", "processes"), ("dask", "Dask workers")):
        for count, per_s in found.get(engine, {}).items():
            lines.append(f"{count} {name:<18} {per_s:8.2f} shards/s, {per_s / found['here']:.2f} of it")
    for engine, share in found["overhead"].items():
        lines.append(f"one worker, {engine}: a shard takes {share:+.1%}")
    return "\n".join(lines)
