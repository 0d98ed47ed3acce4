"""Dense energy: penalises pixels that are near each other and similar in colour but have different classes.

The sum over all pairs of pixels is exact and not normalised: see gaussian_sum.

Shapes: B images, C classes with background, h x w logits, H x W pixels, N points = pixels of the core (the image at
`scale` times its size) row by row, D features of a point.

Source: Tang et al. 2018 (regularised losses) as ToCo uses it (D-52; D-76, 7); golden `energy`.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from wsss.gaussian_sum import bilateral_features, gaussian_sum, gaussian_sum_on_grid
from wsss.maps.boxes import inside_box
from wsss.tensors import IGNORE_INDEX, at_least_float32, full_precision, resize

Gradient = Literal["published", "true"]

FINEST = 0.1  # sigmas; finer grids have nearly a cell for each pixel


def dense_energy(
    image_B3HW: Tensor,
    seg_logits_BChw: Tensor,
    label_BHW: Tensor,
    box_B4: Tensor,
    *,
    sigma_rgb: float = 15.0,
    sigma_xy: float = 100.0,
    scale: float = 0.5,
    gate: bool = True,
    gradient: Gradient = "published",
    grid: float = 0.0,
) -> Tensor:
    """Energy of the class probabilities S at `scale` times the image's size, as a mean over images.

        E = -1/B sum_bki S'_ki G_i (A S')_ki,    S' = S inside the box, 0 outside
        A_ij = exp(-|p_i - p_j|^2 / (2 (scale sigma_xy)^2) - |I_i - I_j|^2 / (2 sigma_rgb^2)),   j = i included
        G_i = max(0, 1 - max_k S_ki), 1 where the label is 255: labelled, confident pixels are not penalised

    The published filter, a permutohedral lattice, returns about 0.5 to 0.6 of this sum in the same direction (golden
    `energy`). Neither that factor nor the published weight 1e-7 is in here.

    Args:
        image_B3HW: RGB in [0, 1]; gets no gradient.
        seg_logits_BChw: resized to (H, W) before the softmax.
        label_BHW: class ids, of which only 255 matters.
        box_B4: valid rectangle (y0, y1, x0, x1) in pixels, half-open.
        sigma_rgb: in 1/255 of the colour range.
        sigma_xy: in pixels of (H, W).
        gate: False takes G = 1.
        gradient: with respect to S, G held constant. "published": -2 G (A S') / B. "true": -(G (A S') + A (G S')) / B,
            the derivative; its filter runs over 2 C maps.
        grid: if above 0, CPUs use a bilateral grid for A: pixels are treated as equal if they share a cell that is
            `grid` sigmas wide in each colour and a tenth of that in each coordinate (see gaussian_sum_on_grid). GPUs
            use every pixel.

    Returns:
        Scalar <= 0 in float32 or better.

    Raises:
        ValueError: shapes that do not fit; a sigma or scale that is not positive, a scale above 1; a grid finer than
            FINEST; an empty core.
    """
    check_energy(scale, grid, sigma_rgb, sigma_xy)
    check_shapes(image_B3HW, seg_logits_BChw, label_BHW)
    size = core_size(image_B3HW.shape[-2], image_B3HW.shape[-1], scale)
    with full_precision(seg_logits_BChw):
        probs_BCHW = resize(at_least_float32(seg_logits_BChw), image_B3HW.shape[-2:]).softmax(dim=1)
        core_BCN = resize(probs_BCHW, size).flatten(2)
        with torch.no_grad():
            inside_B1N = nearest(inside_box(box_B4, *image_B3HW.shape[-2:]), size).flatten(1)[:, None].to(core_BCN)
            gate_B1N = torch.ones_like(inside_B1N)
            if gate:
                unlabelled_B1N = nearest(label_BHW == IGNORE_INDEX, size).flatten(1)[:, None]
                unsure_B1N = (1 - core_BCN.amax(dim=1, keepdim=True)).clamp(min=0)  # resizing may round above 1
                gate_B1N = unsure_B1N.masked_fill(unlabelled_B1N, 1)
            colours_B3hw = nearest(image_B3HW, size).to(core_BCN) * 255
            features_BND = bilateral_features(colours_B3hw, sigma_rgb, scale * sigma_xy)
            energy, slope_BCN = energy_and_slope(features_BND, core_BCN * inside_B1N, gate_B1N, gradient, grid)
        return WithSlope.apply(core_BCN, energy, slope_BCN * inside_B1N)


def energy_and_slope(
    features_BND: Tensor,
    masked_BCN: Tensor,
    gate_B1N: Tensor,
    gradient: Gradient,
    grid: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """E of S' (B, C, N) and its gradient with respect to S', (B, C, N); see dense_energy."""
    maps_BMN = masked_BCN if gradient == "published" else torch.cat([masked_BCN, gate_B1N * masked_BCN], dim=1)
    values_BNM = maps_BMN.transpose(1, 2)
    if grid > 0 and features_BND.device.type == "cpu":
        sides_D = features_BND.new_tensor([0.1 * grid] * 2 + [grid] * 3)
        sums_BMN = gaussian_sum_on_grid(features_BND, values_BNM, sides_D).transpose(1, 2)
    else:
        sums_BMN = gaussian_sum(features_BND, values_BNM).transpose(1, 2)
    batch, classes, _ = masked_BCN.shape
    gated_BCN = gate_B1N * sums_BMN[:, :classes]
    other_BCN = gated_BCN if gradient == "published" else sums_BMN[:, classes:]
    return -(masked_BCN * gated_BCN).sum() / batch, -(gated_BCN + other_BCN) / batch


class WithSlope(torch.autograd.Function):
    """A value whose gradient with respect to x is given."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return outer[0] * slope, None, None


def nearest(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., H, W) -> (..., *size): row i is row floor(i H / h), in integers, so that no rounding decides."""
    y_h, x_w = (
        torch.arange(cells, device=x.device) * length // cells for cells, length in zip(size, x.shape[-2:], strict=True)
    )
    return x[..., y_h[:, None], x_w]


def check_energy(scale: float, grid: float, sigma_rgb: float = 1.0, sigma_xy: float = 1.0) -> None:
    """Raise ValueError unless both sigmas are positive, scale is in (0, 1] and grid is 0 or no finer than FINEST."""
    if grid != 0 and not grid >= FINEST:
        raise ValueError(f"dense_energy: energy_grid {grid}; wanted 0 for every pixel, or {FINEST} or more")
    if not (sigma_rgb > 0 and sigma_xy > 0 and 0 < scale <= 1):
        raise ValueError(
            f"dense_energy: sigma_rgb {sigma_rgb}, sigma_xy {sigma_xy}, energy_scale {scale}; wanted all > 0 and scale "
            "<= 1"
        )


def check_shapes(image_B3HW: Tensor, seg_logits_BChw: Tensor, label_BHW: Tensor) -> None:
    """Raise ValueError for shapes that do not fit."""
    batch, channels, height, width = image_B3HW.shape
    if channels != 3 or label_BHW.shape != (batch, height, width) or seg_logits_BChw.shape[0] != batch:
        raise ValueError(
            f"dense_energy: image {tuple(image_B3HW.shape)}, seg_logits {tuple(seg_logits_BChw.shape)}, label "
            f"{tuple(label_BHW.shape)}; wanted (B, 3, H, W), (B, C, h, w), (B, H, W) with the same B, H, W"
        )


def core_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """(height, width) of the core of an image, rounded down; raises ValueError for an empty one."""
    size = int(height * scale), int(width * scale)
    if min(size) < 1:
        raise ValueError(
            f"dense_energy: nothing is left of {height} x {width} pixels at scale {scale}; wanted a "
            f"method.energy_scale of {1 / min(height, width):.2g} or more"
        )
    return size
