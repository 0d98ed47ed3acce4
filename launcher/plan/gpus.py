"""Data sheets of GPUs, and the share of their peaks that a step reaches."""

from typing import NamedTuple

import torch

from launcher.bench.count import ATTENTION, PAIRS
from launcher.config.sections import Precision
from launcher.errors import ConfigError


class Gpu(NamedTuple):
    """Numbers of a data sheet, without sparsity.

    Attributes:
        memory_gib: of one card.
        bf16, fp16, tf32, float32: TFLOP/s, for half precision with sums in float32; bf16 None: no units for it.
        copy: TB/s of its memory.
    """

    title: str
    memory_gib: float
    bf16: float | None
    fp16: float
    tf32: float
    float32: float
    copy: float

    def least(self, flops: int, traffic: int, kind: str, precision: Precision) -> tuple[float, str]:
        """Shortest time of one operator in seconds, and its cause: products at the peak, reading and writing at the
        memory's speed, or the launch of a kernel."""
        limits = {
            "products": flops / self.peak(kind, precision) / 1e12,
            "memory": traffic / self.copy / 1e12,
            "small kernels": LAUNCH_S,
        }
        longest = max(limits, key=limits.__getitem__)
        return limits[longest], longest

    def peak(self, kind: str, precision: Precision) -> float:
        """Peak TFLOP/s of an operator's products."""
        if kind == PAIRS or (kind == "bf16" and precision == "fp16"):
            return self.fp16
        if kind == "bf16" and self.bf16 is not None:
            return self.bf16
        return self.tf32 if precision == "tf32" and kind != ATTENTION else self.float32

    def check_precision(self, precision: Precision) -> None:
        """Raise ConfigError if the card has no units for train.precision."""
        if precision == "bf16" and self.bf16 is None:
            raise ConfigError(
                f"train.precision is bf16, which {self.title} does not support; take train.precision=fp16, or ieee"
            )


LAUNCH_S = 3e-6  # shortest time of a kernel on the device
HOST_S = (31e-6, 55e-6)  # of the host per operator, without a CUDA graph; 42 to 46 us on the H100 machine
UTILISATION = (0.7, 0.3)  # of these peaks, best and worst; steps measured on an H100 reached 0.32 to 0.75

GPUS = {
    "h100": Gpu("NVIDIA H100 80GB SXM", 79.6, 989, 989, 494, 67, 3.35),
    "h200": Gpu("NVIDIA H200 141GB", 140.0, 989, 989, 494, 67, 4.8),
    "a100": Gpu("NVIDIA A100 40GB", 39.4, 312, 312, 156, 19.5, 1.56),
    "a100-80": Gpu("NVIDIA A100 80GB", 79.2, 312, 312, 156, 19.5, 2.04),
    "l40s": Gpu("NVIDIA L40S 48GB", 44.5, 362, 362, 183, 91.6, 0.86),
    "a10": Gpu("NVIDIA A10 24GB", 22.5, 125, 125, 62.5, 31.2, 0.6),
    "4090": Gpu("NVIDIA RTX 4090 24GB", 23.6, 165, 165, 82.6, 82.6, 1.01),
    "3090": Gpu("NVIDIA RTX 3090 24GB", 23.6, 71, 71, 35.6, 35.6, 0.94),
    "t4": Gpu("NVIDIA T4 16GB (no TF32: as float32)", 14.6, None, 65, 8.1, 8.1, 0.32),
}


def find_gpu(name: str | None) -> Gpu:
    """The GPU of this name; None = the one in this machine if it is known, else an H100.

    Raises:
        ConfigError: no such name.
    """
    if name is None:
        return here() or GPUS["h100"]
    if name.lower() not in GPUS:
        raise ConfigError(f"--gpu: there is no '{name}'; choose one of {', '.join(GPUS)}")
    return GPUS[name.lower()]


def here() -> Gpu | None:
    """This machine's GPU with its real memory; None if there is none, or none of these data sheets is of it."""
    if not torch.cuda.is_available():
        return None
    title, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory / 2**30
    known = [gpu for name, gpu in GPUS.items() if name.split("-")[0].upper() in title.upper()]
    return (
        min(known, key=lambda gpu: abs(gpu.memory_gib - memory))._replace(title=title, memory_gib=memory)
        if known
        else None
    )


def measured_here(name: str | None) -> bool:
    """Whether measuring is better than a data sheet: this machine has a GPU, and no other one is named."""
    return name is None and torch.cuda.is_available()
