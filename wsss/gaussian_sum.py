"""The sum over all pairs of points, weighed by a Gaussian of their distance: exact, and nothing of size N x N stored.

With queries [f_i, 1] and keys [f_j, -|f_j|^2 / 2], an attention kernel gives out_i / Z_i and log Z_i,
Z_i = sum_j exp(f_i.f_j - |f_j|^2 / 2), of

    out_i = sum_j exp(-|f_i - f_j|^2 / 2) v_j = (out_i / Z_i) exp(log Z_i - |f_i|^2 / 2)

Shapes: B images, N points, D features of a point, E of a query or key, C values of a point, P cells of a grid, h x w
pixels.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.tensors import triton_serves

Attention = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

HEAD_MULTIPLE = 8  # the fused kernels want a multiple of 4 or 8 of float32 in a head


def gaussian_sum(features_BND: Tensor, values_BNC: Tensor) -> Tensor:
    """out_i = sum_j exp(-|f_i - f_j|^2 / 2) v_j, (B, N, C); not differentiable.

    On a GPU a kernel of our own (gaussian_triton); else a fused one of torch that returns log Z (FUSED); else
    gaussian_sum_chunked. In float32 a sum is off by up to 2e-5 of itself where features differ by 17 = 255 / 15:
    rounding of |f|^2. On a GPU values and weights are rounded to float16: up to 1e-3, seen 2e-4.
    """
    middle_B1D = (features_BND.amax(dim=1, keepdim=True) + features_BND.amin(dim=1, keepdim=True)) / 2
    features_BND = features_BND - middle_B1D  # this changes no sum, and rounding errors grow with |f|^2
    if triton_serves(features_BND) and features_BND.shape[2] == 5:
        from wsss.gaussian_triton import triton_gaussian_sum

        return triton_gaussian_sum(features_BND, values_BNC)
    attention = FUSED.get((features_BND.device.type, features_BND.dtype))
    if attention is None:
        return gaussian_sum_chunked(features_BND, values_BNC)
    return gaussian_sum_by(attention, features_BND, values_BNC)


def gaussian_sum_by(attention: Attention, features_BND: Tensor, values_BNC: Tensor) -> Tensor:
    """gaussian_sum by a kernel that returns log Z."""
    half_square_BN1 = half_square(features_BND)
    queries_BNE = torch.cat([features_BND, torch.ones_like(half_square_BN1)], dim=2)
    keys_BNE = torch.cat([features_BND, -half_square_BN1], dim=2)
    mean_BNC, log_Z_BN = attention(queries_BNE, keys_BNE, values_BNC)
    return mean_BNC * (log_Z_BN[:, :, None] - half_square_BN1).exp()


def gaussian_sum_chunked(features_BND: Tensor, values_BNC: Tensor, *, chunk: int = 256) -> Tensor:
    """gaussian_sum in plain matrix products, `chunk` x N pairs at a time: any device, and what the kernels are checked
    against."""
    half_square_BN1 = half_square(features_BND)
    rows_BNE = torch.cat([features_BND, torch.ones_like(half_square_BN1), -half_square_BN1], dim=2)
    columns_BNE = torch.cat([features_BND, -half_square_BN1, torch.ones_like(half_square_BN1)], dim=2)
    columns_BEN = columns_BNE.transpose(1, 2).contiguous()
    sums = [(rows @ columns_BEN).exp_() @ values_BNC for rows in rows_BNE.split(chunk, dim=1)]
    return torch.cat(sums, dim=1)


def gaussian_sum_on_grid(features_BND: Tensor, values_BNC: Tensor, sides_D: Tensor) -> Tensor:
    """gaussian_sum of points that are each moved to the mean of those in its cell of a bilateral grid, (B, N, C).

    A cell's points have one sum and add up to one value, so that P occupied cells cost P^2 pairs instead of N^2. It
    reads how many these are, which makes the host wait for a GPU.

    Args:
        sides_D: sides of a cell along each feature, in standard deviations.

    Source: the bilateral grid (Chen et al. 2007; Barron and Poole 2016), with the means of cells for their corners.
    """
    sums = []
    for features_ND, values_NC in zip(features_BND, values_BNC, strict=True):  # each image has another number of cells
        cell_N, count_P = grid_cells(features_ND, sides_D)
        means_PD = add_up(features_ND, cell_N, len(count_P)) / count_P[:, None]
        of_cells_1PC = gaussian_sum(means_PD[None], add_up(values_NC, cell_N, len(count_P))[None])
        sums.append(of_cells_1PC[0, cell_N])
    return torch.stack(sums)


def grid_cells(features_ND: Tensor, sides_D: Tensor) -> tuple[Tensor, Tensor]:
    """(N) int64 in 0..P-1, the occupied cell of each point; (P) how many points it has."""
    place_ND = ((features_ND - features_ND.amin(dim=0)) / sides_D).long()
    number_N = torch.zeros_like(place_ND[:, 0])
    for place_N in place_ND.unbind(1):
        number_N = number_N * (place_N.max() + 1) + place_N
    _, cell_N, count_P = number_N.unique(return_inverse=True, return_counts=True)
    return cell_N, count_P


def add_up(values_NC: Tensor, cell_N: Tensor, cells: int) -> Tensor:
    """Sums (P, C) of the values of each cell's points."""
    return values_NC.new_zeros(cells, values_NC.shape[1]).index_add_(0, cell_N, values_NC)


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
    """As cpu_attention. It pads log Z to 32 rows. On an H100 a sum was off by up to 1.4e-4 (docs/experiments.md)."""
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
