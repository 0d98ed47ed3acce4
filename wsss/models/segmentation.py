"""What the segmentation networks share: a score for every class, background first, at every position.

Shapes: B images, K foreground classes, C = K + 1 classes with background 0, D feature channels, h x w output grid.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wsss.models.base import Network, Outputs
from wsss.tensors import at_least_float32


class SegmentationNetwork(Network):
    """A network trained on masks or refined maps. Its `head` is the classifier of all C classes.

    Args:
        feature_dim, mean, std: see Network.
        stride: what the sides of an image should be multiples of; the output grid may be finer.
        num_classes: K, without background.
    """

    def __init__(
        self, *, feature_dim: int, stride: int, num_classes: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__(feature_dim=feature_dim, stride=stride, num_classes=num_classes + 1, mean=mean, std=std)
        self.num_classes = num_classes

    def grad_cam_layer(self, index: int) -> nn.Module:
        raise ValueError("a segmentation network has no Grad-CAM layer; use kind 'seg'")


def segmentation_outputs(seg_logits_BChw: Tensor, patches_BDhw: Tensor) -> Outputs:
    """Outputs of a segmentation network, in the terms of an image classifier.

        class_map_k = z_k - log sum_{c != k} exp z_c,   cls_logits_k = max over h, w of class_map_k

    so that sigmoid(class_map_k) = softmax(z)_k, and an image has a class as far as its surest position has it.
    The class map is float32 or better.

    Args:
        seg_logits_BChw: z, background first, C >= 2.
        patches_BDhw: the last features before the classifier.
    """
    z_BChw = at_least_float32(seg_logits_BChw)
    class_map_BKhw = (z_BChw - logsumexp_of_others(z_BChw))[:, 1:]
    return Outputs(class_map_BKhw.amax(dim=(2, 3)), patches_BDhw, class_map_BKhw, seg_logits_BChw=seg_logits_BChw)


def foreground_probabilities(seg_logits_BChw: Tensor) -> Tensor:
    """CAM kind `seg`: the softmax over all classes, without the background's share, (B, K, h, w) float32."""
    return seg_logits_BChw.float().softmax(dim=1)[:, 1:]


def logsumexp_of_others(z_BChw: Tensor) -> Tensor:
    """log sum_{c != k} exp z_c for every k; (B, C, h, w) -> the same.

    From the sums over the classes before k and after k: no difference of nearly equal numbers, so it holds where
    softmax is 1 to the last bit, and the memory grows with C and not with its square.
    """
    nothing = torch.full_like(z_BChw[:, :1], -torch.inf)
    before = torch.cat([nothing, torch.logcumsumexp(z_BChw[:, :-1], dim=1)], dim=1)
    after = torch.cat([torch.logcumsumexp(z_BChw[:, 1:].flip(1), dim=1).flip(1), nothing], dim=1)
    return torch.logaddexp(before, after)
