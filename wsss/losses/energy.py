"""Dense energy: a segmentation pays for pixels that are near, of like colour and in different classes.

The sum over all pairs of pixels is exact and not normalised. With queries [f_i, 1] and keys [f_j, -|f_j|^2 / 2], an
attention kernel gives out_i / Z_i and log Z_i, Z_i = sum_j exp(f_i.f_j - |f_j|^2 / 2), of

    out_i = sum_j exp(-|f_i - f_j|^2 / 2) v_j = (out_i / Z_i) exp(log Z_i - |f_i|^2 / 2)

so nothing of size N x N is stored.

Shapes: B images, C classes with background, h x w logits, H x W pixels, N points = pixels of the core (the image at
`scale` times its size) row by row, D features of a point, E of a query or key.

Source: Tang et al. 2018 (regularised losses) as ToCo uses it (D-52; D-76, 7); golden `energy`.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.maps.boxes import inside_box
from wsss.tensors import IGNORE_INDEX, at_least_float32, full_precision, resize

Gradient = Literal["published", "true"]
Attention = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

HEAD_MULTIPLE = 8  # the fused kernels want a multiple of 4 or 8 of float32 in a head


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
) -> Tensor:
    """Energy of the class probabilities S at `scale` times the image's size, as a mean over images.

        E = -1/B sum_bki S'_ki G_i (A S')_ki,    S' = S inside the box, 0 outside
        A_ij = exp(-|p_i - p_j|^2 / (2 (scale sigma_xy)^2) - |I_i - I_j|^2 / (2 sigma_rgb^2)),   j = i included
        G_i = max(0, 1 - max_k S_ki), 1 where the label is 255: what is labelled and sure pays nothing

    The published filter, a permutohedral lattice, returns about 0.5 to 0.6 of this sum in the same direction (golden
    README, 11). Neither that factor nor the published weight 1e-7 is in here.

    Args:
        image_B3HW: RGB in [0, 1]; gets no gradient.
        seg_logits_BChw: resized to (H, W) before the softmax.
        label_BHW: class ids, of which only 255 is read.
        box_B4: valid rectangle (y0, y1, x0, x1) in pixels, half-open.
        sigma_rgb: in 1/255 of the colour range. sigma_xy: in pixels of (H, W).
        gate: False takes G = 1.
        gradient: with respect to S, G held constant. "published": -2 G (A S') / B. "true": -(G (A S') + A (G S')) / B,
            the derivative; its filter runs over 2 C maps.

    Returns:
        Scalar <= 0 in float32 or better.

    Raises:
        ValueError: shapes that do not fit; a sigma or scale that is not positive, a scale above 1; an empty core.
    """
    check_options(sigma_rgb, sigma_xy, scale)
    size = core_size(image_B3HW, seg_logits_BChw, label_BHW, scale)
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
            energy, slope_BCN = energy_and_slope(features_BND, core_BCN * inside_B1N, gate_B1N, gradient)
        return WithSlope.apply(core_BCN, energy, slope_BCN * inside_B1N)


def energy_and_slope(
    features_BND: Tensor, masked_BCN: Tensor, gate_B1N: Tensor, gradient: Gradient
) -> tuple[Tensor, Tensor]:
    """E of S' (B, C, N) and its gradient with respect to S', (B, C, N); see dense_energy."""
    maps_BMN = masked_BCN if gradient == "published" else torch.cat([masked_BCN, gate_B1N * masked_BCN], dim=1)
    sums_BMN = gaussian_sum(features_BND, maps_BMN.transpose(1, 2)).transpose(1, 2)
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


def bilateral_features(colours_B3hw: Tensor, sigma_rgb: float, sigma_xy: float) -> Tensor:
    """(y / sigma_xy, x / sigma_xy, rgb / sigma_rgb) of every pixel, (B, N, 5)."""
    batch, _, height, width = colours_B3hw.shape
    rows_columns = (torch.arange(length).to(colours_B3hw) for length in (height, width))
    position_2hw = torch.stack(torch.meshgrid(*rows_columns, indexing="ij")) / sigma_xy
    features_B5hw = torch.cat([position_2hw.expand(batch, -1, -1, -1), colours_B3hw / sigma_rgb], dim=1)
    return features_B5hw.flatten(2).transpose(1, 2)


def nearest(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., H, W) -> (..., *size): row i is row floor(i H / h), in integers, so that no rounding decides."""
    y_h, x_w = (
        torch.arange(cells, device=x.device) * length // cells for cells, length in zip(size, x.shape[-2:], strict=True)
    )
    return x[..., y_h[:, None], x_w]


# Gaussian sums.


def gaussian_sum(features_BND: Tensor, values_BNC: Tensor) -> Tensor:
    """out_i = sum_j exp(-|f_i - f_j|^2 / 2) v_j over the points of each image, (B, N, C); not differentiable.

    A fused kernel where one returns log Z (FUSED), else gaussian_sum_chunked. In float32 a sum is off by up to 2e-5 of
    itself where features differ by 17 = 255 / 15: rounding of |f|^2.

    Not tested by its authors, who had no such device: the CUDA kernel; only its call, with tensors on `meta`.
    """
    features_BND = centred(features_BND)
    attention = FUSED.get((features_BND.device.type, features_BND.dtype))
    if attention is None:
        return gaussian_sum_chunked(features_BND, values_BNC)
    half_square_BN1 = features_BND.square().sum(dim=2, keepdim=True) / 2
    queries_BNE = torch.cat([features_BND, torch.ones_like(half_square_BN1)], dim=2)
    keys_BNE = torch.cat([features_BND, -half_square_BN1], dim=2)
    mean_BNC, log_Z_BN = attention(queries_BNE, keys_BNE, values_BNC)
    return mean_BNC * (log_Z_BN[:, :, None] - half_square_BN1).exp()


def gaussian_sum_chunked(features_BND: Tensor, values_BNC: Tensor, *, chunk: int = 256) -> Tensor:
    """gaussian_sum in plain matrix products, `chunk` x N pairs at a time: any device, and what the kernels are checked
    against."""
    negative_half_BN1 = features_BND.square().sum(dim=2, keepdim=True) / -2
    one_BN1 = torch.ones_like(negative_half_BN1)
    rows_BNE = torch.cat([features_BND, one_BN1, negative_half_BN1], dim=2)
    columns_BEN = torch.cat([features_BND, negative_half_BN1, one_BN1], dim=2).transpose(1, 2).contiguous()
    sums = [(rows @ columns_BEN).exp_() @ values_BNC for rows in rows_BNE.split(chunk, dim=1)]
    return torch.cat(sums, dim=1)


def centred(features_BND: Tensor) -> Tensor:
    """Features around the middle of their range: this changes no sum, and rounding errors grow with |f|^2."""
    return features_BND - (features_BND.amax(dim=1, keepdim=True) + features_BND.amin(dim=1, keepdim=True)) / 2


def cpu_attention(queries_BNE: Tensor, keys_BNE: Tensor, values_BNC: Tensor) -> tuple[Tensor, Tensor]:
    """softmax(Q K^T) V, (B, N, C), and its log normaliser, (B, N). The kernel wants one width for all three."""
    classes = values_BNC.shape[2]
    width = max(queries_BNE.shape[2], classes)
    heads = [padded_head(x, width) for x in (queries_BNE, keys_BNE, values_BNC)]
    out_B1NC, log_Z_B1N = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*heads, scale=1.0)
    return out_B1NC[:, 0, :, :classes], log_Z_B1N[:, 0]


def cuda_attention(queries_BNE: Tensor, keys_BNE: Tensor, values_BNC: Tensor) -> tuple[Tensor, Tensor]:
    """As cpu_attention. Shapes were checked, values not yet: no GPU was at hand. It pads log Z to 32 rows."""
    points, classes = values_BNC.shape[1:]
    heads = [padded_head(x, x.shape[2]) for x in (queries_BNE, keys_BNE, values_BNC)]
    out_B1NC, log_Z_B1N, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(*heads, None, True, scale=1.0)
    return out_B1NC[:, 0, :, :classes], log_Z_B1N[:, 0, :points]


FUSED: dict[tuple[str, torch.dtype], Attention] = {
    ("cpu", torch.float32): cpu_attention,
    ("cpu", torch.float64): cpu_attention,
    ("cuda", torch.float32): cuda_attention,
}


def padded_head(x_BNE: Tensor, width: int) -> Tensor:
    """(B, N, E) -> (B, 1, N, E'), zeros up to the first multiple of HEAD_MULTIPLE that holds `width`."""
    wanted = -(-width // HEAD_MULTIPLE) * HEAD_MULTIPLE
    return F.pad(x_BNE, (0, wanted - x_BNE.shape[2]))[:, None]


def check_options(sigma_rgb: float, sigma_xy: float, scale: float) -> None:
    if not (sigma_rgb > 0 and sigma_xy > 0 and 0 < scale <= 1):
        raise ValueError(
            f"dense_energy: sigma_rgb {sigma_rgb}, sigma_xy {sigma_xy}, scale {scale}; wanted all > 0 and scale <= 1"
        )


def core_size(image_B3HW: Tensor, seg_logits_BChw: Tensor, label_BHW: Tensor, scale: float) -> tuple[int, int]:
    """(height, width) of the core, rounded down."""
    batch, channels, height, width = image_B3HW.shape
    if channels != 3 or label_BHW.shape != (batch, height, width) or seg_logits_BChw.shape[0] != batch:
        raise ValueError(
            f"dense_energy: image {tuple(image_B3HW.shape)}, seg_logits {tuple(seg_logits_BChw.shape)}, label "
            f"{tuple(label_BHW.shape)}; wanted (B, 3, H, W), (B, C, h, w), (B, H, W) of the same B, H, W"
        )
    size = int(height * scale), int(width * scale)
    if min(size) < 1:
        raise ValueError(f"dense_energy: {height} x {width} pixels have nothing left at scale {scale}")
    return size
