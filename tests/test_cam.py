import pytest
import torch
from networks import tiny_cnn, tiny_vit
from torch import nn

from wsss.cam import grad_cam, multi_scale_cam, normalise_cam, resize, view_maps, weighted_sum
from wsss.methods import Classify
from wsss.models.base import Network, Outputs


def test_normalised_cam_by_hand():
    raw = torch.tensor([[[[-1.0, 1.0], [2.0, 3.0]]]])
    # ReLU gives 0 1 2 3; min-max divides by 3
    expected = torch.tensor([[0.0, 1 / 3], [2 / 3, 1.0]])
    torch.testing.assert_close(normalise_cam(raw)[0, 0], expected, atol=1e-6, rtol=0)


def test_a_map_that_is_nowhere_positive_gives_zeros():
    assert normalise_cam(-torch.rand(1, 2, 3, 3)).abs().max() == 0


def test_normalisation_is_per_image_and_class_and_ignores_scale():
    raw = torch.rand(2, 3, 4, 4)
    scaled = raw * torch.tensor([1.0, 10.0, 100.0])[:, None, None]
    torch.testing.assert_close(normalise_cam(raw), normalise_cam(scaled), atol=1e-5, rtol=0)


def test_weighted_sum_by_hand():
    activation = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])  # D=2, h=1, w=2
    gradient = torch.tensor([[[1.0, 3.0]], [[-1.0, 0.0]]])  # means 2 and -1/2
    assert weighted_sum(activation, gradient).tolist() == [[2 * 1 - 1.5, 2 * 2 - 2]]


@pytest.mark.parametrize("layers", [(-1,), (0, 1), (1, 0)])
def test_grad_cam_equals_a_plain_backward_pass_per_image_and_class(layers):
    vit = tiny_vit(num_classes=3).eval()
    image = torch.rand(2, 3, 32, 32)
    maps, out = grad_cam(vit, image, layers)
    assert maps.shape == (len(layers), 2, 3, 4, 4)
    assert not maps.requires_grad and not out.cls_logits_BK.requires_grad
    for position, layer in enumerate(layers):
        for b in range(2):
            for k in range(3):
                kept = []
                handle = vit.backbone.blocks[layer].norm1.register_forward_hook(
                    lambda m, i, o, kept=kept: kept.append(o)
                )
                logits = vit(image[b : b + 1]).cls_logits_BK
                handle.remove()
                (gradient,) = torch.autograd.grad(logits[0, k], kept[0])
                activation, gradient = (vit.grid_of(x, (4, 4))[0] for x in (kept[0].detach(), gradient))
                torch.testing.assert_close(
                    maps[position, b, k], weighted_sum(activation, gradient), atol=1e-6, rtol=1e-4
                )


def test_grad_cam_of_the_cnns_last_stage_is_its_class_map_without_the_bias():
    # logit = mean of W.A + b, so the gradient of each channel is W / (h w) everywhere
    cnn = tiny_cnn(num_classes=2).eval()
    nn.init.constant_(cnn.head.bias, 0.7)
    image = torch.rand(2, 3, 32, 32)
    maps, out = grad_cam(cnn, image)
    torch.testing.assert_close(maps[0] * 16, out.class_map_BKhw - 0.7, atol=1e-5, rtol=1e-4)


def test_grad_cam_leaves_no_gradient_and_no_hook_behind():
    vit = tiny_vit().eval()
    grad_cam(vit, torch.rand(1, 3, 32, 32))
    assert all(p.grad is None and p.requires_grad for p in vit.parameters())
    assert not any(m._forward_hooks for m in vit.modules())
    assert torch.is_grad_enabled()


def test_one_forward_pass_serves_all_kinds():
    vit = tiny_vit().eval()
    calls = []
    vit.register_forward_hook(lambda *_: calls.append(1))
    maps, probs = view_maps(vit, Classify(vit).maps_of, torch.rand(2, 3, 32, 32), ["grad", "class_map"])
    assert len(calls) == 1
    assert set(maps) == {"grad", "class_map"}
    assert probs.shape == (2, 1) and 0 < probs.min() < probs.max() < 1


def test_an_unknown_kind_lists_those_there_are():
    vit = tiny_vit().eval()
    with pytest.raises(ValueError, match=r"cam.kinds: \['project'\] not among \['class_map', 'grad'\]"):
        view_maps(vit, Classify(vit).maps_of, torch.rand(1, 3, 32, 32), ["project"])


class Brightness(Network):
    """Its class map is the mean colour of each 8 x 8 cell."""

    def __init__(self):
        super().__init__(feature_dim=3, stride=8, num_classes=1, mean=(0, 0, 0), std=(1, 1, 1))

    def forward(self, image):
        cells = nn.functional.avg_pool2d(image, 8)
        class_map = cells.mean(1, keepdim=True)
        return Outputs(class_map.mean(dim=(2, 3)), cells, class_map)


def brightness_maps(image):
    network = Brightness()
    return view_maps(network, Classify(network).maps_of, image, ["class_map"])


def test_multi_scale_is_the_mean_of_the_scales_on_the_finest_grid():
    image = torch.rand(2, 3, 32, 48)
    cams, probs = multi_scale_cam(brightness_maps, image, stride=8, scales=(0.5, 1.0))
    small, small_probs = brightness_maps(resize(image, (16, 24)))
    whole, whole_probs = brightness_maps(image)
    expected = (normalise_cam(whole["class_map"]) + resize(normalise_cam(small["class_map"]), (4, 6))) / 2
    torch.testing.assert_close(cams["class_map"], expected)
    assert cams["class_map"].shape == (2, 1, 4, 6)
    torch.testing.assert_close(probs, (whole_probs + small_probs) / 2)


def test_scale_one_alone_changes_nothing():
    image = torch.rand(1, 3, 32, 32)
    cams, _ = multi_scale_cam(brightness_maps, image, stride=8)
    torch.testing.assert_close(cams["class_map"], normalise_cam(brightness_maps(image)[0]["class_map"]))


def test_flip_makes_the_cam_of_the_mirrored_image_the_mirrored_cam():
    vit = tiny_vit().eval()
    image = torch.rand(1, 3, 32, 32)

    def maps(view):
        return view_maps(vit, Classify(vit).maps_of, view, ["class_map"])

    plain, _ = multi_scale_cam(maps, image, stride=8, flip=True)
    mirrored, _ = multi_scale_cam(maps, image.flip(-1), stride=8, flip=True)
    torch.testing.assert_close(plain["class_map"], mirrored["class_map"].flip(-1), atol=1e-6, rtol=1e-5)
