"""Consistency over time: two neighbouring frames have the same map where nothing moves between them.

Smoke moves and its background does not: a map that changes on a still background is wrong in one of two frames.

Shapes: P pairs of frames, C channels, h x w grid of tokens, H x W pixels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.tensors import at_least_float32

EPS = 1e-6


def still_tokens(first_P3HW: Tensor, second_P3HW: Tensor, grid: Sequence[int], threshold: float) -> Tensor:
    """Where nothing moves between two frames: (P, h, w) bool.

        m_n = [ mean over the pixels and colours of token n of |I - J| <= threshold ]

    Args:
        first_P3HW, second_P3HW: RGB in [0, 1], with the same crop and flip.
        grid: (h, w).
        threshold: in [0, 1]. Noise of a camera with a deviation of s gives a mean of 1.13 s.
    """
    difference_P1HW = (at_least_float32(first_P3HW) - at_least_float32(second_P3HW)).abs().mean(dim=1, keepdim=True)
    return F.adaptive_avg_pool2d(difference_P1HW, (grid[0], grid[1]))[:, 0] <= threshold


def still_loss(first_PChw: Tensor, second_PChw: Tensor, still_Phw: Tensor) -> Tensor:
    """Distance between the maps of two frames where nothing moves.

        z = (x - mean) / sqrt(variance + 1e-6)    over the positions of both frames, each channel of a pair by itself
        L = mean over pairs of  sum_n m_n mean_c (z_nc - z'_nc)^2 / max(sum_n m_n, 1)

    The maps are standardised, with a gradient through mean and variance. Otherwise the loss could be reduced by
    shrinking the maps, whose scale is arbitrary. Both sides have a gradient, since neither frame is the better teacher
    (D-156).

    Args:
        first_PChw, second_PChw: any real maps.
        still_Phw: bool, see still_tokens.

    Returns:
        Scalar >= 0 in float32 or better; 0 where the maps are equal at all still tokens, and where there are none.
        Unrelated maps give about 2.

    Raises:
        ValueError: shapes that do not fit.
    """
    if first_PChw.shape != second_PChw.shape or still_Phw.shape != first_PChw[:, 0].shape:
        raise ValueError(
            f"maps {tuple(first_PChw.shape)} and {tuple(second_PChw.shape)} and tokens {tuple(still_Phw.shape)}; "
            "wanted (P, C, h, w) twice and (P, h, w)"
        )
    both_PC2hw = torch.stack([at_least_float32(first_PChw), at_least_float32(second_PChw)], dim=2)
    variance, mean = torch.var_mean(both_PC2hw, dim=(2, 3, 4), keepdim=True, correction=0)
    z_PC2hw = (both_PC2hw - mean) / torch.sqrt(variance + EPS)
    square_Phw = (z_PC2hw[:, :, 0] - z_PC2hw[:, :, 1]).square().mean(dim=1)
    weight_Phw = still_Phw.to(square_Phw.dtype)
    return ((square_Phw * weight_Phw).sum(dim=(1, 2)) / weight_Phw.sum(dim=(1, 2)).clamp(min=1)).mean()
