"""What tensors need everywhere: resizing, float32, sums in groups of images, the index that is ignored."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from importlib.util import find_spec
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = 255
"""Of pixels that no loss and no figure counts. shards.schema has its own, since neither room imports the other."""


def at_least_float32(x: Tensor) -> Tensor:
    """x in float32; float64 stays."""
    return x if x.dtype == torch.float64 else x.float()


AS_ON_GPU = ContextVar("AS_ON_GPU", default=False)


def triton_serves(x: Tensor) -> bool:
    """Are there kernels of our own for this tensor? Triton comes with torch's CUDA builds on Linux."""
    return (x.is_cuda or AS_ON_GPU.get()) and x.dtype == torch.float32 and find_spec("triton") is not None


@contextmanager
def as_on_gpu() -> Iterator[None]:
    """Tensors without values are taken for a GPU's inside, so that its kernels are counted."""
    before = AS_ON_GPU.set(True)
    try:
        yield
    finally:
        AS_ON_GPU.reset(before)


@contextmanager
def full_precision(x: Tensor) -> Iterator[None]:
    """Mixed precision and TF32 products are off inside, on the device of x."""
    kind, tf32 = x.device.type, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32


def mean_in_groups(value_Bxy: Tensor, mask_Bxy: Tensor, group_size: int | None) -> Tensor:
    """sum(mask * value) / (sum(mask) + 1) over each group of consecutive images, one value per group."""
    mask_Bxy = mask_Bxy.to(value_Bxy.dtype)
    total = sum_in_groups((mask_Bxy * value_Bxy).sum(dim=(1, 2)), group_size)
    return total / (sum_in_groups(mask_Bxy.sum(dim=(1, 2)), group_size) + 1)


def mean_where(value_Bxy: Tensor, mask_Bxy: Tensor, group_size: int | None) -> Tensor:
    """sum(mask * value) / max(sum(mask), 1) over each group of consecutive images, one value per group."""
    total_G = sum_in_groups((mask_Bxy * value_Bxy).sum(dim=(1, 2)), group_size)
    return total_G / sum_in_groups(mask_Bxy.sum(dim=(1, 2)), group_size).clamp(min=1)


def sum_in_groups(value_B: Tensor, group_size: int | None) -> Tensor:
    """Sums over each `group_size` consecutive images, one value per group; None = all images are one group.

    Raises:
        ValueError: the batch does not divide into groups.
    """
    check_groups(len(value_B), group_size)
    return value_B.view(-1, group_size or len(value_B)).sum(dim=1)


def check_groups(images: int, group_size: int | None) -> None:
    """Raise ValueError unless so many images divide into groups."""
    if group_size is not None and (group_size < 1 or images % group_size):
        raise ValueError(
            f"{images} images in this batch do not divide into groups of {group_size}: choose a group size that "
            "divides the images that one process has at a time, or none, which makes the batch one group"
        )


def is_size(old: Sequence[int], new: Sequence[int]) -> bool:
    """Whether resizing from one size to the other changes nothing. Never while a graph is exported: a comparison would
    fix the size of its images, and an exact resize to the same size gives the same values."""
    return not torch.compiler.is_compiling() and tuple(old) == tuple(new)


def resize(map_BChw: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, half-pixel centres, edges clamped, no antialias; (B, C, h, w) -> (B, C, *size)."""
    if is_size(map_BChw.shape[-2:], size):
        return map_BChw
    if map_BChw.is_cuda and map_BChw.requires_grad and torch.is_grad_enabled():
        return resize_by_products(map_BChw, size, "linear")
    return F.interpolate(map_BChw, size=tuple(size), mode="bilinear", align_corners=False)


def moved(map_BChw: Tensor, px: int) -> Tensor:
    """A map whose content lies `px` cells further to the upper left (below 0: to the lower right); edges repeated."""
    if px == 0:
        return map_BChw
    if px > 0:
        return F.pad(map_BChw[..., px:, px:], (0, px, 0, px), mode="replicate")
    return F.pad(map_BChw[..., :px, :px], (-px, 0, -px, 0), mode="replicate")


def resize_by_products(map_BChw: Tensor, size: Sequence[int], mode: Literal["linear", "bicubic"]) -> Tensor:
    """F.interpolate(align_corners=False) as a product from the left and one from the right, in float32 or better.

    On a GPU the backward pass of F.interpolate adds in no fixed order, and it and the bicubic forward pass take
    milliseconds where this takes a tenth of one (docs/experiments.md).
    """
    if mode == "linear" and all(2 * new == old for new, old in zip(size, map_BChw.shape[-2:], strict=True)):
        return F.avg_pool2d(map_BChw, 2)  # half the size: a mean of four
    with full_precision(map_BChw):
        x_BChw = at_least_float32(map_BChw)
        rows_Hh, columns_Ww = (taps(old, new, mode, x_BChw) for old, new in zip(map_BChw.shape[-2:], size, strict=True))
        return (rows_Hh @ x_BChw @ columns_Ww.T).to(map_BChw.dtype)


def taps(old: int, new: int, mode: Literal["linear", "bicubic"], like: Tensor) -> Tensor:
    """(new, old): how much of each old cell each new one takes."""
    identity = torch.eye(old, dtype=like.dtype, device=like.device)[:, None, :]
    if mode == "linear":
        return F.interpolate(identity, size=new, mode="linear", align_corners=False)[:, 0].T
    flat = F.interpolate(identity[:, :, None].expand(-1, -1, 1, -1), size=(1, new), mode="bicubic", align_corners=False)
    return flat[:, 0, 0].T


def keyed_draws(seed_B: Tensor, count: int) -> Tensor:
    """(B, count) int64 that look random and are a function of the seed alone, on any device; no two of a row are equal.

    Args:
        seed_B: int64, any value.
    """
    position_N = torch.arange(count, device=seed_B.device)
    return mixed(mixed(seed_B)[:, None] + position_N * GOLDEN_GAMMA)


def signed(bits: int) -> int:
    """The int64 with these 64 bits."""
    return bits - (1 << 64) if bits >> 63 else bits


GOLDEN_GAMMA = signed(0x9E3779B97F4A7C15)
MIX_1, MIX_2 = signed(0xBF58476D1CE4E5B9), signed(0x94D049BB133111EB)


def mixed(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele et al. 2014): a bijection of int64 whose output looks random.

    Different inputs have different outputs, so keys made of it have no ties.
    """
    x = (x ^ shifted(x, 30)) * MIX_1
    x = (x ^ shifted(x, 27)) * MIX_2
    return x ^ shifted(x, 31)


def shifted(x: Tensor, bits: int) -> Tensor:
    """x >> bits of int64 with zeros from the left, as for an unsigned number."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
