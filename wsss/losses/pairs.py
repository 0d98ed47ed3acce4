"""Which patches belong together, learnt from a label map.

Shapes: B images, E channels, N = h * w patches.
"""

import torch
from torch import Tensor

from wsss.tensors import IGNORE_INDEX, at_least_float32, full_precision, sum_in_groups


def affinity_logits(fused_BEhw: Tensor) -> Tensor:
    """z_ij = <f_i, f_j> / sqrt(E), (B, N, N); sigmoid(z) is the affinity."""
    flat_BEN = at_least_float32(fused_BEhw).flatten(2)
    with full_precision(flat_BEN):
        return flat_BEN.transpose(1, 2) @ flat_BEN / flat_BEN.shape[1] ** 0.5


def dense_pair_loss(logits_BNN: Tensor, label_Bhw: Tensor, group_size: int | None = None) -> Tensor:
    """Log-likelihood of which patches have one label, both kinds of pairs with equal weight.

        L = -1/2 mean over equal pairs of log sigmoid(z) - 1/2 mean over others of log sigmoid(-z)

    A pair with a 255, and a patch with itself, count nowhere; a half without pairs is 0.

    Args:
        label_Bhw: {0, k, 255} on the grid of the patches.
        group_size: see balanced_segmentation_loss.

    Source: WeCLIP, affinity loss of the decoder's features, in a balanced form (D-148).
    """
    label_BN = label_Bhw.flatten(1)
    known_BN = label_BN != IGNORE_INDEX
    counted_BNN = known_BN[:, :, None] & known_BN[:, None, :]
    counted_BNN = counted_BNN & ~torch.eye(label_BN.shape[1], dtype=torch.bool, device=label_BN.device)
    equal_BNN = label_BN[:, :, None] == label_BN[:, None, :]
    halves = []
    for pairs_BNN, z_BNN in ((counted_BNN & equal_BNN, logits_BNN), (counted_BNN & ~equal_BNN, -logits_BNN)):
        total_G = sum_in_groups((-torch.nn.functional.logsigmoid(z_BNN) * pairs_BNN).sum(dim=(1, 2)), group_size)
        halves.append((total_G / sum_in_groups(pairs_BNN.sum(dim=(1, 2)), group_size).clamp(min=1)).mean())
    return 0.5 * (halves[0] + halves[1])
