import pytest
import torch
from support.networks import tiny_toco
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from wsss.models.base import IMAGENET_MEAN, IMAGENET_STD, Network


def test_a_network_begins_with_a_narrow_classifier_and_normalises_its_images():
    assert (IMAGENET_MEAN, IMAGENET_STD) == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    network = Network(feature_dim=64, stride=8, num_classes=80, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert network.head.weight.std().item() == pytest.approx(0.02, rel=0.05) and not network.head.bias.any()
    image = torch.rand(2, 3, 4, 4)
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(network.normalise(image), (image - mean) / std)


def test_detached_outputs_are_the_same_without_a_graph():
    def all_of(out):
        further = [*out.further_logits, *out.maps.values(), out.seg_logits_BChw]
        return [out.cls_logits_BK, out.patches_BDhw, out.class_map_BKhw, *further]

    out = tiny_toco(3)(torch.rand(1, 3, 32, 32))
    pairs = list(zip(all_of(out), all_of(out.detached()), strict=True))
    assert len(pairs) == 7
    assert all(x.requires_grad and not y.requires_grad and torch.equal(x, y) for x, y in pairs)
