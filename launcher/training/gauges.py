"""How a run uses its machine: step time, waiting for data, memory, utilisation. They are read when the run logs and the
host waits for the device anyway, so that no step waits for them.

Names are MLflow's own if it has one, so that they appear on its page of system metrics."""

import time
from collections.abc import Iterator
from contextlib import suppress

import psutil
import torch

from shards.batches.batch import Batch


class Gauges:
    """Use of this process and its device since the last reading."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.process = psutil.Process()
        self.waited_s = 0.0
        self.began = time.perf_counter()
        psutil.cpu_percent()  # the first call only begins to measure

    def next_batch(self, batches: Iterator[Batch]) -> Batch:
        """The next batch; the time until it arrives counts as waiting for data."""
        asked = time.perf_counter()
        batch = next(batches)
        self.waited_s += time.perf_counter() - asked
        return batch

    def leave_out(self, seconds: float | None = None) -> None:
        """Leave out time that was not training: this number of seconds, or everything up to now."""
        self.began = time.perf_counter() if seconds is None else self.began + seconds

    def read(self, steps: int, images: float) -> dict[str, float]:
        """Values for the steps since the last reading, by their names in the log.

        Args:
            images: of all processes.
        """
        now = time.perf_counter()
        took_s, waited_s = now - self.began, self.waited_s
        self.began, self.waited_s = now, 0.0
        memory = psutil.virtual_memory()
        found = {
            "train/images_per_s": images / took_s,
            "system/step_seconds": took_s / steps,
            "system/data_wait_seconds": waited_s / steps,
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/process_memory_megabytes": self.process.memory_info().rss / 1e6,
            "system/system_memory_usage_megabytes": memory.used / 1e6,
            "system/system_memory_usage_percentage": memory.percent,
        }
        return found | (self.read_gpu() if self.device.type == "cuda" else {})

    def read_gpu(self) -> dict[str, float]:
        number = self.device.index or 0
        free, total = torch.cuda.mem_get_info(self.device)
        found = {
            "memory_usage_megabytes": (total - free) / 1e6,
            "memory_usage_percentage": 100 * (1 - free / total),
            "memory_peak_megabytes": torch.cuda.max_memory_allocated(self.device) / 1e6,
        }
        with suppress(Exception):  # the driver's library is missing, or does not answer in this container
            found["utilization_percentage"] = float(torch.cuda.utilization(self.device))
        return {f"system/gpu_{number}_{name}": value for name, value in found.items()}
