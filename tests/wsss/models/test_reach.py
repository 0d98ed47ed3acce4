"""Where cells look, against geometry that is known, and that a shift puts them where maps are drawn."""

import pytest
import torch
from torch import nn

from wsss.models.base import Network, Outputs
from wsss.models.cnn import build_cnn
from wsss.models.pcm import build_pcm
from wsss.models.reach import displacement
from wsss.models.vit import build_vit
from wsss.tensors import moved


class Strided(Network):
    """Two convolutions of stride 2 whose weights are all equal."""

    def __init__(self, size, padding):
        super().__init__(feature_dim=1, stride=4, num_classes=1, mean=(0.5,) * 3, std=(0.2,) * 3)
        convolutions = [nn.Conv2d(dim, 1, size, stride=2, padding=padding, bias=False) for dim in (3, 1)]
        self.convolutions = nn.Sequential(*convolutions)
        for convolution in convolutions:
            nn.init.ones_(convolution.weight)

    def forward(self, image):
        features = self.convolutions(self.normalise(image))
        return Outputs(features.mean(dim=(2, 3)), features, features)


@pytest.mark.parametrize(("size", "padding", "away"), [(3, 1, 1.5), (7, 3, 1.5), (2, 0, 0.0), (4, 1, 0.0), (1, 0, 1.5)])
def test_how_far_maps_lie_from_what_they_show_is_that_of_the_geometry(size, padding, away):
    network = Strided(size, padding)
    assert displacement(network, 64) == pytest.approx((away, away), abs=1e-4) and network.training
    displacement(network.eval(), 64)
    assert not network.training


@pytest.mark.parametrize("build", [build_cnn, build_pcm])
def test_a_shift_puts_the_maps_of_a_cnn_where_they_look(build):
    """A random ResNet at stride 16: 7.5 pixels, but for the noise of its gradients."""
    away = []
    for shift in (0, 7):
        torch.manual_seed(0)
        network = build(2, timm_name="resnet18", shift_px=shift)
        away.append(displacement(network, 224))
    assert away[0] == pytest.approx((7.5, 7.5), abs=1.5)
    assert away[1] == pytest.approx((away[0][0] - 7, away[0][1] - 7), abs=0.5)


def test_patches_look_where_they_lie():
    torch.manual_seed(0)
    vit = build_vit(2, timm_name="vit_tiny_patch16_224", timm_options={"depth": 1})
    assert displacement(vit, 224) == pytest.approx((0.0, 0.0), abs=2.0)  # attention sees the whole image


def test_content_moves_to_the_upper_left_and_edges_are_repeated():
    x = torch.arange(9.0).view(1, 1, 3, 3)
    assert moved(x, 1)[0, 0].tolist() == [[4, 5, 5], [7, 8, 8], [7, 8, 8]]
    assert moved(x, -1)[0, 0].tolist() == [[0, 0, 1], [0, 0, 1], [3, 3, 4]]
    assert moved(x, 0) is x


def test_a_shift_of_a_cell_or_more_is_refused():
    with pytest.raises(
        ValueError, match="model.shift_px is -16; wanted less than one cell, 16 pixels, in either direction"
    ):
        build_cnn(2, timm_name="resnet10t", shift_px=-16)
