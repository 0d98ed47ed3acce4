import math

import pytest
import torch

from wsss.losses.pairs import affinity_logits, dense_pair_loss


def test_an_affinity_is_the_product_of_two_patches_over_the_root_of_their_channels():
    fused = torch.tensor([[1.0, 2.0], [0.0, 1.0], [3.0, 0.0], [0.0, -1.0]])[None, :, None]  # 4 channels, 2 patches
    assert affinity_logits(fused).tolist() == [[[5.0, 1.0], [1.0, 3.0]]]


def test_the_loss_of_pairs_by_hand():
    # patches of labels 1, 1, 0, 255: of the known pairs 0-1 is equal, 0-2 and 1-2 are not, each in both directions
    logits = torch.full((1, 4, 4), 9.0)
    logits[0, 0, 1], logits[0, 1, 0] = math.log(3), 0.0  # log sigmoid: log(3 / 4), log(1 / 2)
    logits[0, [0, 2], [2, 0]] = math.log(3)  # log sigmoid(-z): log(1 / 4)
    logits[0, [1, 2], [2, 1]] = -math.log(7)  # log(7 / 8)
    equal, other = (math.log(4 / 3) + math.log(2)) / 2, (math.log(4) + math.log(8 / 7)) / 2
    label = torch.tensor([[[1, 1], [0, 255]]])
    assert dense_pair_loss(logits, label).item() == pytest.approx((equal + other) / 2)
    assert dense_pair_loss(logits, label.clamp(min=255)).item() == 0
    assert dense_pair_loss(logits, torch.tensor([[[1, 255], [255, 255]]])).item() == 0  # with itself it is no pair
    twice = dense_pair_loss(logits.repeat(2, 1, 1), torch.cat([label, label.clamp(min=255)]), group_size=1)
    assert twice.item() == pytest.approx((equal + other) / 4)
