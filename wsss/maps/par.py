"""Pixel-adaptive refinement (PAR): spreads maps between pixels of similar colour, so that they end at image edges.

Shapes: B images, C maps, h x w pixels, N neighbours = 8 per dilation: dilation by dilation, row by row, not the pixel
itself. A neighbour beyond the border is the pixel at the border.

Source: Ru et al. 2023 (ToCo), after Araslanov & Roth 2020 (D-76, 5); golden `par`.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.tensors import at_least_float32, triton_serves

DILATIONS = (1, 2, 4, 8, 12, 24)
SHARPNESS = 0.3  # a difference of 0.3 standard deviations among the neighbours costs one unit in the exponent
POSITION_WEIGHT = 0.01
EPS = 1e-8
FARTHEST_PX = 4096  # of a neighbour, by which an image is padded
MOST_ITERATIONS = 1000  # of a refinement; each takes as long as the first


def pixel_adaptive_refinement(
    image_B3hw: Tensor, masks_BChw: Tensor, *, dilations: Sequence[int] = DILATIONS, num_iter: int = 10
) -> Tensor:
    """Refine the maps along the image in num_iter iterations; all maps of an image share one set of weights.

    The weights of a pixel sum to 1.01, so the maps grow by 1.01 each time.

    Args:
        image_B3hw: RGB in [0, 1]. The result does not change with contrast: colour differences are measured in standard
            deviations of each pixel's own neighbourhood.
        masks_BChw: any C >= 1 and any range; maps of another size are first resized to (h, w) with aligned corners.

    Returns:
        (B, C, h, w) in float32 or better, with gradient to the maps.

    Raises:
        ValueError: see neighbour_weights and propagate.
    """
    weight_BNhw = neighbour_weights(image_B3hw, dilations)
    masks_BChw = at_least_float32(masks_BChw)
    if masks_BChw.shape[-2:] != image_B3hw.shape[-2:]:  # unlike tensors.resize: the published form of this one step
        masks_BChw = F.interpolate(masks_BChw, size=image_B3hw.shape[-2:], mode="bilinear", align_corners=True)
    return propagate(masks_BChw, weight_BNhw, dilations, num_iter)


def neighbour_weights(image_B3hw: Tensor, dilations: Sequence[int] = DILATIONS) -> Tensor:
    """Weight of each neighbour of a pixel, (B, N, h, w) >= 0, sum over N 1.01; float32 or better, no gradient.

        a_n = -mean_rgb (|I_n - I_0| / (std_n I + 1e-8) / 0.3)^2,   std over the N neighbours, unbiased
        p_n = -(r_n / (std r + 1e-8) / 0.3)^2,                      r_n = distance in pixels
        weight = softmax_n a + 0.01 softmax_n p

    Raises:
        ValueError: not (B, 3, h, w) floating point; no dilation, or one below 1.
    """
    check_dilations(dilations)
    if image_B3hw.dim() != 4 or image_B3hw.shape[1] != 3 or not image_B3hw.is_floating_point():
        raise ValueError(
            f"par: image is {tuple(image_B3hw.shape)} of {image_B3hw.dtype}; wanted (B, 3, h, w) RGB in [0, 1]"
        )
    image_B3hw = at_least_float32(image_B3hw.detach())
    position_N11 = position_weights(tuple(dilations), image_B3hw.dtype, image_B3hw.device)
    if triton_serves(image_B3hw):
        from wsss.maps.par_triton import triton_weights

        return triton_weights(image_B3hw, position_N11.flatten(), list(dilations), SHARPNESS, EPS)
    difference_BN3hw = torch.stack(neighbours(image_B3hw, dilations), dim=1).sub_(image_B3hw[:, None])
    # The deviation of the differences is that of the colours. In two passes: torch.std took 33 ms here, this 5 (CPU).
    centred_BN3hw = difference_BN3hw - difference_BN3hw.mean(dim=1, keepdim=True)
    std_B13hw = (centred_BN3hw.square_().sum(dim=1, keepdim=True) / (difference_BN3hw.shape[1] - 1)).sqrt_()
    colour_BNhw = difference_BN3hw.div_((std_B13hw + EPS) * SHARPNESS).square_().mean(dim=2).neg_().softmax(dim=1)
    return colour_BNhw.add_(position_N11)


def propagate(
    masks_BChw: Tensor, weight_BNhw: Tensor, dilations: Sequence[int] = DILATIONS, num_iter: int = 10
) -> Tensor:
    """masks <- sum_n weight_n neighbour_n(masks), num_iter times; (B, C, h, w).

    Args:
        weight_BNhw: from neighbour_weights with the same dilations.

    Raises:
        ValueError: maps and weights that differ in images, neighbours or size; num_iter below 0 or above 1,000.
    """
    batch, _, height, width = masks_BChw.shape
    wanted = (batch, 8 * len(dilations), height, width)
    if weight_BNhw.shape != wanted:
        raise ValueError(
            f"par: weights {tuple(weight_BNhw.shape)} for maps {tuple(masks_BChw.shape)}, {len(dilations)} dilations; "
            f"wanted {wanted}: use the weights of the same images, at the size of the maps, with the same dilations"
        )
    check_iterations(num_iter)
    if triton_serves(masks_BChw) and not (torch.is_grad_enabled() and masks_BChw.requires_grad):
        from wsss.maps.par_triton import triton_propagate

        return triton_propagate(masks_BChw, weight_BNhw, list(dilations), num_iter)
    return propagate_by_views(masks_BChw, weight_BNhw, dilations, num_iter)


def propagate_by_views(masks_BChw: Tensor, weight_BNhw: Tensor, dilations: Sequence[int], num_iter: int) -> Tensor:
    """propagate on any device, with a gradient. It adds up one neighbour after the other, as views of one padded
    tensor, so nothing of size C x N is stored."""
    weights = weight_BNhw.split(1, dim=1)
    for _ in range(num_iter):
        total_BChw = torch.zeros_like(masks_BChw)
        for weight_B1hw, view_BChw in zip(weights, neighbours(masks_BChw, dilations), strict=True):
            total_BChw.addcmul_(weight_B1hw, view_BChw)
        masks_BChw = total_BChw
    return masks_BChw


def neighbours(x_BChw: Tensor, dilations: Sequence[int]) -> list[Tensor]:
    """N views (B, C, h, w) of x with its border repeated: view n holds the n-th neighbour of every pixel."""
    height, width = x_BChw.shape[-2:]
    margin = max(dilations)
    padded = F.pad(x_BChw, (margin,) * 4, mode="replicate")
    return [
        padded[:, :, margin + dy : margin + dy + height, margin + dx : margin + dx + width]
        for dy, dx in neighbour_offsets(dilations)
    ]


def neighbour_offsets(dilations: Sequence[int]) -> list[tuple[int, int]]:
    """(dy, dx) in pixels of the N neighbours, in their order."""
    around = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
    return [(dilation * dy, dilation * dx) for dilation in dilations for dy, dx in around]


def position_weights(dilations: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """0.01 softmax_n p, (N, 1, 1), computed on the device, since a copy from the host would make it wait."""
    cell_8 = torch.arange(8, device=device)
    cell_8 = cell_8 + (cell_8 >= 4)  # of the 3 x 3 cells, the middle one left out; corners are even
    corner_8 = 1 + (math.sqrt(2) - 1) * (cell_8 % 2 == 0).to(torch.float64)
    distance_N = torch.cat([dilation * corner_8 for dilation in dilations])
    exponents_N = -((distance_N / ((distance_N.std() + EPS) * SHARPNESS)) ** 2)
    return (POSITION_WEIGHT * exponents_N.softmax(dim=0)).to(dtype)[:, None, None]


def check_refinement(num_iter: int, dilations: Sequence[int]) -> None:
    """Raise ValueError unless the options of a refinement are valid."""
    check_iterations(num_iter)
    check_dilations(dilations)


def check_dilations(dilations: Sequence[int]) -> None:
    """Raise ValueError unless there is a dilation and all are 1 to FARTHEST_PX: images are padded by the largest."""
    if not dilations or min(dilations) < 1 or max(dilations) > FARTHEST_PX:
        raise ValueError(
            f"par: dilations are {tuple(dilations)}; wanted one or more distances of 1 to {FARTHEST_PX} pixels"
        )


def check_iterations(num_iter: int) -> None:
    if not 0 <= num_iter <= MOST_ITERATIONS:
        raise ValueError(f"par: num_iter is {num_iter}; wanted 0 to {MOST_ITERATIONS} (10 is usual)")
