"""What tensors need everywhere: resizing, float32, sums in groups of images, the index that is ignored."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = 255
"""Of pixels that no loss and no figure counts. shards.schema has its own, since neither room imports the other."""


def at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def full_precision(x: Tensor) -> AbstractContextManager:
    """Mixed precision is off inside, on the device of x."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def mean_in_groups(value_Bxy: Tensor, mask_Bxy: Tensor, group_size: int | None) -> Tensor:
    """sum(mask * value) / (sum(mask) + 1) over each group of consecutive images, one value per group."""
    mask_Bxy = mask_Bxy.to(value_Bxy.dtype)
    total = sum_in_groups((mask_Bxy * value_Bxy).sum(dim=(1, 2)), group_size)
    return total / (sum_in_groups(mask_Bxy.sum(dim=(1, 2)), group_size) + 1)


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


def resize(map_BChw: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, half-pixel centres, edges clamped, no antialias; (B, C, h, w) -> (B, C, *size)."""
    if tuple(map_BChw.shape[-2:]) == tuple(size):
        return map_BChw
    return F.interpolate(map_BChw, size=tuple(size), mode="bilinear", align_corners=False)
