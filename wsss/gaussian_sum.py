"""The sum over all pairs of points, weighed by a Gaussian of their distance: exact, and nothing of size N x N stored.

With queries [f_i, 1] and keys [f_j, -|f_j|^2 / 2], an attention kernel gives out_i / Z_i and log Z_i,
Z_i = sum_j exp(f_i.f_j - |f_j|^2 / 2), of

    out_i = sum_j exp(-|f_i - f_j|^2 / 2) v_j = (out_i / Z_i) exp(log Z_i - |f_i|^2 / 2)

Shapes: B images, N points, D features of a point, E of a query or key, C values of a point.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.tensors import triton_serves

Attention = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

HEAD_MULTIPLE = 8  # the fused kernels want a multiple of 4 or 8 of float32 in a head


def gaussian_sum(features_BND: Tensor, values_BNC: Tensor) -> Tensor:
    """out_i = sum_j exp(-|f_i - f_j|^2 / 2) v_j over the points of each image, (B, N, C); not differentiable.

    On a GPU a kernel of our own (gaussian_triton); else a fused one of torch that returns log Z (FUSED); else
    gaussian_sum_chunked. In float32 a sum is off by up to 2e-5 of itself where features differ by 17 = 255 / 15:
    rounding of |f|^2. On a GPU values and weights are rounded to float16: up to
    1e-3, seen 2e-4.
    """
    features_BND = centred(features_BND)
    if triton_serves(features_BND) and features_BND.shape[2] == 5:
        from wsss.gaussian_triton import triton_gaussian_sum

        return triton_gaussian_sum(features_BND, values_BNC)
    attention = FUSED.get((features_BND.device.type, features_BND.dtype))
    if attention is None:
        return gaussian_sum_chunked(features_BND, values_BNC)
    return gaussian_sum_by(attention, features_BND, values_BNC)


def gaussian_sum_by(attention: Attention, features_BND: Tensor, values_BNC: Tensor) -> Tensor:
    """gaussian_sum of centred features by a kernel that returns log Z."""
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
