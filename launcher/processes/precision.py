"""What `train.precision` sets: all flags of torch for the precision in which float32 tensors are multiplied.

ieee   float32 everywhere
tf32   matrix products and convolutions of float32 tensors in TF32 (GPUs since Ampere): 10 bits after the point
bf16   autocast to bfloat16 in networks; losses, CAMs and all else in float32
fp16   the same to float16, for GPUs before Ampere; gradients are scaled (launcher/training/loss_scale.py)
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from launcher.config.sections import Precision

if TYPE_CHECKING:
    import torch


def set_precision(precision: Precision) -> None:
    """Set all flags of this process. torch's defaults are a mixture: convolutions in TF32, products in IEEE."""
    import torch

    tf32 = precision == "tf32"
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32


def half_of(capability: tuple[int, int]) -> Precision:
    """The fastest precision for which a GPU of this CUDA capability has units: bfloat16 since Ampere, float16 since
    Volta."""
    return "bf16" if capability >= (8, 0) else "fp16" if capability >= (7, 0) else "ieee"


def name_emulation(precision: Precision, device: "torch.device") -> str:
    """A note about bfloat16 on a GPU that has no units for it; "" otherwise."""
    import torch

    if precision != "bf16" or device.type != "cuda":
        return ""
    half = half_of(torch.cuda.get_device_capability(device))
    if half == "bf16":
        return ""
    name = torch.cuda.get_device_name(device)
    return f"train.precision is bf16, which {name} only emulates, slowly: train.precision={half} is faster"


@contextmanager
def in_precision(precision: Precision, device_type: str) -> Iterator[None]:
    """Run forward passes of a network in this precision, in training and elsewhere."""
    import torch

    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    set_precision(precision)
    try:
        with torch.autocast(device_type, half, enabled=half is not None):
            yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def set_deterministic() -> None:
    """Make a step bit-equal each time on a GPU: every operator of torch sums in a fixed order, or raises an error.

    This needs CUBLAS_WORKSPACE_CONFIG before the process first uses the GPU: the launch command sets it, and, for
    workers of a job, this function.
    """
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
