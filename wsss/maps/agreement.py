"""Attention of frozen layers that corrects maps: which layers agree with a learned affinity, and propagation along
them.

Shapes: L layers, B images, P maps of an image, N = h * w patches.
"""

from torch import Tensor

from wsss.tensors import at_least_float32, full_precision

EPS = 1e-8


def agreeing_attention(attention_LBNN: Tensor, affinity_BNN: Tensor | None) -> Tensor:
    """Mean attention of the layers that are nearer to the learned affinity than the average layer, (B, N, N).

        s_l = mean_ij |A_ij - a_l,ij|,   kept: s_l <= mean_l s_l

    At least the nearest is kept.

    Args:
        affinity_BNN: None = the mean of all layers.

    Source: WeCLIP, frozen CLIP CAM refinement module, in our reading (D-148).
    """
    attention_LBNN = at_least_float32(attention_LBNN)
    if affinity_BNN is None:
        return attention_LBNN.mean(dim=0)
    distance_LB = (affinity_BNN - attention_LBNN).abs().mean(dim=(2, 3))
    kept_LB = (distance_LB <= distance_LB.mean(dim=0) + EPS).to(attention_LBNN.dtype)
    return ((kept_LB / kept_LB.sum(dim=0))[:, :, None, None] * attention_LBNN).sum(dim=0)


def balanced(attention_BNN: Tensor, iterations: int = 3) -> Tensor:
    """Symmetric weights whose rows sum to about 1: rows and columns divided by their sums in turn, then the mean with
    the transpose (Sinkhorn; CLIP-ES, Lin et al. 2023, refines CAMs by it)."""
    for _ in range(iterations):
        attention_BNN = attention_BNN / (attention_BNN.sum(dim=1, keepdim=True) + EPS)
        attention_BNN = attention_BNN / (attention_BNN.sum(dim=2, keepdim=True) + EPS)
    return (attention_BNN + attention_BNN.transpose(1, 2)) / 2


def walk_along(cam_BPhw: Tensor, attention_BNN: Tensor, steps: int) -> Tensor:
    """cam' = R^steps cam, R from `balanced`; steps 0 leaves the maps as they are."""
    walk_BNN = balanced(at_least_float32(attention_BNN))
    flat_BPN = at_least_float32(cam_BPhw).flatten(2)
    with full_precision(flat_BPN):
        for _ in range(steps):
            flat_BPN = flat_BPN @ walk_BNN  # symmetric
    return flat_BPN.unflatten(2, cam_BPhw.shape[-2:])
