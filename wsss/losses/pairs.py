"""A loss that trains features to tell which patches belong together, from a label map.

Shapes: B images, E channels, N = h * w patches.
"""

import torch.nn.functional as F
from torch import Tensor

from wsss.losses.contrast import pair_mask
from wsss.tensors import at_least_float32, full_precision, mean_where


def affinity_logits(fused_BEhw: Tensor) -> Tensor:
    """z_ij = <f_i, f_j> / sqrt(E), (B, N, N); sigmoid(z) is the affinity."""
    flat_BEN = at_least_float32(fused_BEhw).flatten(2)
    with full_precision(flat_BEN):
        return flat_BEN.transpose(1, 2) @ flat_BEN / flat_BEN.shape[1] ** 0.5


def dense_pair_loss(logits_BNN: Tensor, label_Bhw: Tensor, group_size: int | None = None) -> Tensor:
    """Negative log-likelihood of which patches have the same label; both kinds of pairs have equal weight.

        L = -1/2 mean over equal pairs of log sigmoid(z) - 1/2 mean over others of log sigmoid(-z)

    A pair with a 255, and a patch with itself, do not count; a half without pairs is 0.

    Args:
        label_Bhw: {0, k, 255} on the grid of the patches.
        group_size: see balanced_segmentation_loss.

    Source: WeCLIP, affinity loss of the decoder's features, in a balanced form (D-148).
    """
    pairs_BNN = pair_mask(label_Bhw)
    equal = mean_where(-F.logsigmoid(logits_BNN), pairs_BNN == 1, group_size).mean()
    other = mean_where(-F.logsigmoid(-logits_BNN), pairs_BNN == 0, group_size).mean()
    return 0.5 * (equal + other)
