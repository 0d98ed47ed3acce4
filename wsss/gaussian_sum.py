"""The sum over all pairs of points, weighed by a Gaussian of their distance: exact, and nothing of size N x N stored.

With queries [f_i, 1] and keys [f_j, -|f_j|^2 / 2], an attention kernel gives out_i / Z_i and log Z_i,
Z_i = sum_j exp(f_i.f_j - |f_j|^2 / 2), of

    out_i = sum_j exp(-|f_i - f_j|^2 / 2) v_j = (out_i / Z_i) exp(log Z_i - |f_i|^2 / 2)

Shapes: B images, N points, M points that have values, D features of a point, E of a query or key, C values of a point,
h x w pixels.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.tensors import triton_serves

Attention = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

HEAD_MULTIPLE = 8  # the fused kernels want a multiple of 4 or 8 of float32 in a head


def gaussian_sum(features_BND: Tensor, values_BMC: Tensor, keys_BMD: Tensor | None = None) -> Tensor:
    """out_i = sum_j exp(-|f_i - k_j|^2 / 2) v_j, (B, N, C); not differentiable.

    Args:
        keys_BMD: the points j that have the values; None = all points of the image, k = f.

    On a GPU a kernel of our own (gaussian_triton); else a fused one of torch that returns log Z (FUSED); else
    gaussian_sum_chunked. In float32 a sum is off by up to 2e-5 of itself where features differ by 17 = 255 / 15:
    rounding of |f|^2. On a GPU values and weights are rounded to float16: up to
    1e-3, seen 2e-4.
    """
    middle_B1D = (features_BND.amax(dim=1, keepdim=True) + features_BND.amin(dim=1, keepdim=True)) / 2
    features_BND = features_BND - middle_B1D  # this changes no sum, and rounding errors grow with |f|^2
    if keys_BMD is None and triton_serves(features_BND) and features_BND.shape[2] == 5:
        from wsss.gaussian_triton import triton_gaussian_sum

        return triton_gaussian_sum(features_BND, values_BMC)
    keys_BMD = features_BND if keys_BMD is None else keys_BMD - middle_B1D
    attention = FUSED.get((features_BND.device.type, features_BND.dtype))
    if attention is None:
        return gaussian_sum_chunked(features_BND, keys_BMD, values_BMC)
    return gaussian_sum_by(attention, features_BND, keys_BMD, values_BMC)


def gaussian_sum_by(attention: Attention, features_BND: Tensor, keys_BMD: Tensor, values_BMC: Tensor) -> Tensor:
    """gaussian_sum by a kernel that returns log Z."""
    half_square_BN1, of_keys_BM1 = half_square(features_BND), half_square(keys_BMD)
    queries_BNE = torch.cat([features_BND, torch.ones_like(half_square_BN1)], dim=2)
    keys_BME = torch.cat([keys_BMD, -of_keys_BM1], dim=2)
    mean_BNC, log_Z_BN = attention(queries_BNE, keys_BME, values_BMC)
    return mean_BNC * (log_Z_BN[:, :, None] - half_square_BN1).exp()


def gaussian_sum_chunked(features_BND: Tensor, keys_BMD: Tensor, values_BMC: Tensor, *, chunk: int = 256) -> Tensor:
    """gaussian_sum in plain matrix products, `chunk` x M pairs at a time: any device, and what the kernels are checked
    against."""
    half_square_BN1, of_keys_BM1 = half_square(features_BND), half_square(keys_BMD)
    rows_BNE = torch.cat([features_BND, torch.ones_like(half_square_BN1), -half_square_BN1], dim=2)
    columns_BME = torch.cat([keys_BMD, -of_keys_BM1, torch.ones_like(of_keys_BM1)], dim=2)
    columns_BEM = columns_BME.transpose(1, 2).contiguous()
    sums = [(rows @ columns_BEM).exp_() @ values_BMC for rows in rows_BNE.split(chunk, dim=1)]
    return torch.cat(sums, dim=1)


def bilateral_features(colours_B3hw: Tensor, sigma_rgb: float, sigma_xy: float) -> Tensor:
    """(y / sigma_xy, x / sigma_xy, rgb / sigma_rgb) of every pixel, (B, N, 5)."""
    batch, _, height, width = colours_B3hw.shape
    rows_columns = (  # made on the device: a copy would make the host wait
        torch.arange(length, dtype=colours_B3hw.dtype, device=colours_B3hw.device) for length in (height, width)
    )
    position_2hw = torch.stack(torch.meshgrid(*rows_columns, indexing="ij")) / sigma_xy
    features_B5hw = torch.cat([position_2hw.expand(batch, -1, -1, -1), colours_B3hw / sigma_rgb], dim=1)
    return features_B5hw.flatten(2).transpose(1, 2)


def half_square(points_BMD: Tensor) -> Tensor:
    """|f|^2 / 2, (B, M, 1)."""
    return points_BMD.square().sum(dim=2, keepdim=True) / 2


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
