"""The dense CRF's mean field with exact sums over all pairs of pixels, in torch, on any device.

Shapes: C classes, H x W pixels, N = H W of them row by row.
"""

import torch
from torch import Tensor

from wsss.gaussian_sum import bilateral_features, gaussian_sum


@torch.no_grad()
def exact_mean_field(
    image_HW3: Tensor,
    probs_CHW: Tensor,
    *,
    iterations: int,
    gaussian_sxy: float,
    gaussian_weight: float,
    bilateral_sxy: float,
    bilateral_srgb: float,
    bilateral_weight: float,
) -> Tensor:
    """Marginals of the CRF of crf.mean_field, on the device of the probabilities.

        Q <- softmax_c(log p + sum_m w_m n_mi sum_j k_m(i, j) n_mj Q_j),   n_mi = 1 / sqrt(sum_j k_m(i, j))

    where j = i is one of the j.

    The smoothness kernel is a product of one over rows and one over columns, so its sum is two products of matrices.
    That of the appearance kernel takes N^2 steps: 30,000 pixels are a matter of seconds on a core, a photograph of
    many minutes, and of a tenth of a second on a GPU.

    Args:
        probs_CHW: positive; their dtype is the precision of the computation.

    Returns:
        (C, H, W), summing to 1.

    Source: Krähenbühl & Koltun 2011, normalised symmetrically as pydensecrf does by default; golden `crf`.
    """
    size, unary_CHW = probs_CHW.shape[1:], probs_CHW.log()
    colours_13HW = image_HW3.to(probs_CHW).permute(2, 0, 1)[None]
    features_1N5 = bilateral_features(colours_13HW, bilateral_srgb, bilateral_sxy)
    rows_HH, columns_WW = (gaussian_of(length, gaussian_sxy, probs_CHW) for length in size)

    def smooth(maps_CHW: Tensor) -> Tensor:
        return rows_HH @ maps_CHW @ columns_WW

    def look_alike(maps_CHW: Tensor) -> Tensor:
        return gaussian_sum(features_1N5, maps_CHW.flatten(1).T[None])[0].T.unflatten(1, size)

    kernels = [(gaussian_weight, smooth), (bilateral_weight, look_alike)]
    norms_1HW = [kernel(torch.ones_like(probs_CHW[:1])).rsqrt() for _, kernel in kernels]
    marginals_CHW = unary_CHW.softmax(dim=0)
    for _ in range(iterations):
        score_CHW = unary_CHW.clone()
        for (weight, kernel), norm_1HW in zip(kernels, norms_1HW, strict=True):
            score_CHW += weight * norm_1HW * kernel(norm_1HW * marginals_CHW)
        marginals_CHW = score_CHW.softmax(dim=0)
    return marginals_CHW


def gaussian_of(length: int, sigma: float, like: Tensor) -> Tensor:
    """exp(-(i - j)^2 / (2 sigma^2)) of the positions along a side, (length, length)."""
    at = torch.arange(length, device=like.device, dtype=like.dtype) / sigma
    return ((at[:, None] - at).square() / -2).exp()
