"""M-SEE: finds where another scale of the image shows a class better, and lets features learn from that scale there.

    tokens of scale j -> scale_cams (Eq. 1) -> thresholds (Eq. 2) -> fires -> reliable_regions (Eq. 3-4)
    -> feature_distance (Eq. 5-6) -> region_loss (Eq. 7), summed over the scales

Shapes: B images, D channels, P present classes (packed, see segmented_class), C = K + 1 classes with background 0,
J scales in order of priority, h x w token grid of the original image; tokens of a scale have a grid of their own.
An example of one present class on a 2 x 2 grid, with the scales 1.5 and then 0.5; 1 in S is the segmented object:

    M of 1.5    M of 0.5    S      T: mean of M over S          fires: M > T          B: no scale before fires
    0.9 0.1     0.7 0.8     1 1    1.5: 1.5 / 3 = 0.5           1 0        1 1        1 0        0 1
    0.5 0.0     0.2 0.6     1 0    0.5: 1.7 / 3 = 0.567         0 0        0 1        0 0        0 1

Gradients flow wherever the caller lets them: detach the tokens of a scale to make it a teacher.

Source: M-SEE, Eq. 1-7, in the readings of D-44; golden `msee`.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.tensors import at_least_float32, full_precision, mean_in_groups, resize, sum_in_groups

ClassHandling = Literal["agnostic", "per_class"]
DistanceForm = Literal["elements", "l2norm"]
Reduction = Literal["mean", "sum"]

OUTSIDE = -1  # in a map of segmented classes: not part of the image
EPS = 1e-5
MARGIN = 1e-6  # of a map in [0, 1) above its mean: rounding alone, such as that of another padding, must not reach it


def scale_cams(tokens_BDxy: Tensor, weight_BPD: Tensor, size: Sequence[int]) -> Tensor:
    """Eq. 1: M_p = relu(W_p . F) / (max_xy relu(W_p . F) + 1e-5) at the scale's own grid, then resized bilinearly.

    Args:
        tokens_BDxy: tokens of one scale of the image after the final norm.
        weight_BPD: the classifier's rows of the present classes; zero rows, which give zero maps, for padding.
        size: (h, w), grid of the original image.

    Returns:
        (B, P, h, w) in [0, 1), float32 or better.
    """
    with full_precision(tokens_BDxy):
        tokens_BDN = at_least_float32(tokens_BDxy).flatten(2)
        raw_BPN = F.relu(weight_BPD.to(tokens_BDN.dtype) @ tokens_BDN)
        cam_BPN = raw_BPN / (raw_BPN.amax(dim=2, keepdim=True) + EPS)
        return resize(cam_BPN.view(*weight_BPD.shape[:2], *tokens_BDxy.shape[2:]), size)


def segmented_class(
    seg_logits_BChw: Tensor, present_BP: Tensor, valid_Bhw: Tensor, *, present_only: bool = True
) -> Tensor:
    """S of Eq. 2: the class that the decoder gives each position, (B, h, w) int64; -1 where `valid` is False.

    Args:
        seg_logits_BChw: the decoder's scores on the token grid, background first.
        present_BP: channels 0..K-1 of the classes in the image label, padded with -1; class id = channel + 1.
        valid_Bhw: positions inside the image's box.
        present_only: leave out foreground classes that the image label does not name.
    """
    if present_only:
        allowed_BC = torch.zeros(seg_logits_BChw.shape[:2], dtype=torch.bool, device=seg_logits_BChw.device)
        allowed_BC[:, 0] = True
        allowed_BC.scatter_(1, present_BP + 1, True)  # padding names the background, allowed anyway
        seg_logits_BChw = seg_logits_BChw.masked_fill(~allowed_BC[:, :, None, None], -torch.inf)
    return seg_logits_BChw.argmax(dim=1).masked_fill(~valid_Bhw, OUTSIDE)


def thresholds(cam_BPhw: Tensor, segmented_Bhw: Tensor, present_BP: Tensor, *, classes: ClassHandling) -> Tensor:
    """Eq. 2: the mean of a scale's map over the segmented region; +inf, which nothing exceeds, where that is empty.

    Args:
        cam_BPhw: see scale_cams.
        segmented_Bhw, present_BP: see segmented_class.
        classes: `agnostic`: the largest map over all foreground; `per_class`: each map over its own class.

    Returns:
        (B,) agnostic, (B, P) per_class; per_class gives +inf to padding.
    """
    if classes == "agnostic":
        map_Brhw, region_Brhw = cam_BPhw.amax(dim=1, keepdim=True), (segmented_Bhw > 0)[:, None]
    else:
        id_BP11 = (present_BP + 1)[:, :, None, None]
        map_Brhw, region_Brhw = cam_BPhw, (segmented_Bhw[:, None] == id_BP11) & (id_BP11 > 0)
    size_Br = region_Brhw.sum(dim=(2, 3))
    mean_Br = (map_Brhw * region_Brhw).sum(dim=(2, 3)) / size_Br.clamp(min=1)
    threshold_Br = mean_Br.masked_fill(size_Br == 0, torch.inf)
    return threshold_Br.squeeze(1) if classes == "agnostic" else threshold_Br


def fires(cam_BPhw: Tensor, threshold: Tensor) -> Tensor:
    """Where a scale exceeds its threshold by more than rounding could, M > T + 1e-6, (B, h, w) bool.

    A map that is constant over the region equals its mean up to the order of the sum, and does not fire (D-91).

    With thresholds (B,) the largest map of an image is compared; with (B, P) each map with its own, and one is enough.
    """
    if threshold.ndim == 1:
        return cam_BPhw.amax(dim=1) > threshold[:, None, None] + MARGIN
    return (cam_BPhw > threshold[:, :, None, None] + MARGIN).any(dim=1)


def reliable_regions(fires_Bhw: Sequence[Tensor], valid_Bhw: Tensor, *, region_masks: bool = True) -> Tensor:
    """Eq. 3-4: B_j, the valid positions where scale j fires and no scale before it in the list does.

    Args:
        fires_Bhw: one map per scale, first priority first.
        region_masks: False = every scale takes all valid positions ("without B").

    Returns:
        (J, B, h, w) bool.
    """
    if not region_masks:
        return torch.stack([valid_Bhw] * len(fires_Bhw))
    free_Bhw, regions = valid_Bhw, []
    for fired_Bhw in fires_Bhw:
        regions.append(fired_Bhw & free_Bhw)
        free_Bhw = free_Bhw & ~fired_Bhw
    return torch.stack(regions)


def feature_distance(tokens_BDhw: Tensor, scale_BDxy: Tensor, *, form: DistanceForm, beta: float) -> Tensor:
    """Eq. 5-6: distance of each token of the original image from that of the other scale, which is resized to its grid.

        huber(d) = d^2 / (2 beta) if d <= beta, d - beta / 2 beyond

    Args:
        form: `elements`: mean over D of huber(|difference|); `l2norm`: huber of the difference's L2 norm over D.
        beta: where huber turns from square to linear.

    Returns:
        (B, h, w) >= 0, float32 or better.

    Raises:
        ValueError: beta <= 0.
    """
    if not beta > 0:
        raise ValueError(f"beta is {beta}; wanted > 0")
    tokens_BDhw = at_least_float32(tokens_BDhw)
    target_BDhw = resize(at_least_float32(scale_BDxy), tokens_BDhw.shape[2:])
    if form == "elements":
        return F.smooth_l1_loss(tokens_BDhw, target_BDhw, reduction="none", beta=beta).mean(dim=1)
    norm_Bhw = torch.linalg.vector_norm(tokens_BDhw - target_BDhw, dim=1)
    return F.smooth_l1_loss(norm_Bhw, torch.zeros_like(norm_Bhw), reduction="none", beta=beta)


def region_loss(
    distance_Bhw: Tensor, region_Bhw: Tensor, *, reduction: Reduction = "mean", group_size: int | None = None
) -> Tensor:
    """Eq. 7, the part of one scale: the distance inside its region, a scalar; 0 where the region is empty.

    Args:
        reduction: `mean`: sum(B l) / (sum B + 1); `sum`: sum(B l), as published.
        group_size: number of consecutive images that are summed together; the result is the mean over these groups.
            None = the whole batch. See patch_token_contrast.

    Raises:
        ValueError: the batch does not divide into groups.
    """
    if reduction == "mean":
        return mean_in_groups(distance_Bhw, region_Bhw, group_size).mean()
    return sum_in_groups((distance_Bhw * region_Bhw).sum(dim=(1, 2)), group_size).mean()
