"""The one way in which maps are brought to another size."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def resize(map_BChw: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, half-pixel centres, edges clamped, no antialias; (B, C, h, w) -> (B, C, *size)."""
    if tuple(map_BChw.shape[-2:]) == tuple(size):
        return map_BChw
    return F.interpolate(map_BChw, size=tuple(size), mode="bilinear", align_corners=False)
