from functools import partial

import pytest
import torch
from support.networks import tiny_cnn, tiny_segmenter, tiny_toco, tiny_vit
from timm.models.vision_transformer import Attention
from torch import nn

from wsss.maps.cam import fuse_layers, normalise_cam, to_cam, view_maps
from wsss.maps.fusion import CamRule, multi_scale_cam
from wsss.maps.gradients import grad_cam, gradient_maps, layer_cam
from wsss.maps.windows import sliding_window, window_starts
from wsss.methods.classify import Classify
from wsss.models.base import Network, Outputs
from wsss.tensors import resize


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


def test_grad_cam_weighs_channels_by_their_mean_gradient():
    activation = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])  # D=2, h=1, w=2
    gradient = torch.tensor([[[1.0, 3.0]], [[-1.0, 0.0]]])  # means 2 and -1/2
    assert grad_cam(activation, gradient).tolist() == [[2 * 1 - 1.5, 2 * 2 - 2]]


@pytest.mark.parametrize("layers", [(-1,), (0, 1), (1, 0)])
def test_grad_cam_equals_a_plain_backward_pass_per_image_and_class(layers):
    vit = tiny_vit(num_classes=3).eval()
    image = torch.rand(2, 3, 32, 32)
    of_kinds, out = gradient_maps(vit, image, ["grad", "layer"], layers)
    maps = torch.stack(of_kinds["grad"])
    assert maps.shape == torch.stack(of_kinds["layer"]).shape == (len(layers), 2, 3, 4, 4)
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
                for kind, rule in (("grad", grad_cam), ("layer", layer_cam)):
                    of_layer = of_kinds[kind][position][b, k]
                    torch.testing.assert_close(of_layer, rule(activation, gradient), atol=1e-6, rtol=1e-4)


def test_grad_cam_of_the_cnns_last_stage_is_its_class_map_without_the_bias():
    # logit = mean of W.A + b, so the gradient of each channel is W / (h w) everywhere
    cnn = tiny_cnn(num_classes=2).eval()
    nn.init.constant_(cnn.head.bias, 0.7)
    image = torch.rand(2, 3, 32, 32)
    maps, out = gradient_maps(cnn, image)
    torch.testing.assert_close(maps["grad"][0] * 16, out.class_map_BKhw - 0.7, atol=1e-5, rtol=1e-4)


def test_grad_cam_leaves_no_gradient_and_no_hook_behind():
    vit = tiny_vit().eval()
    gradient_maps(vit, torch.rand(1, 3, 32, 32))
    assert all(p.grad is None and p.requires_grad for p in vit.parameters())
    assert not any(m._forward_hooks for m in vit.modules())
    assert torch.is_grad_enabled()


def test_one_forward_pass_serves_all_kinds():
    vit = tiny_vit().eval()
    calls = []
    vit.register_forward_hook(lambda *_: calls.append(1))
    maps, probs = view_maps(vit, Classify(vit).maps_of, torch.rand(2, 3, 32, 32), ["grad", "class_map"])
    assert len(calls) == 1
    assert set(maps) == {"grad", "class_map"} and not maps["class_map"].requires_grad
    assert probs.shape == (2, 1) and 0 < probs.min() < probs.max() < 1


def test_an_unknown_kind_lists_those_there_are():
    vit = tiny_vit().eval()
    known = r"\['attention', 'class_map', 'grad', 'layer'\]"
    with pytest.raises(ValueError, match=rf"cam.kinds: \['project'\] are not among the kinds of this method, {known}"):
        view_maps(vit, Classify(vit).maps_of, torch.rand(1, 3, 32, 32), ["project"])


def test_attention_by_hand_is_one_map_for_all_classes_from_the_same_pass():
    vit = tiny_vit(num_classes=2).eval()
    image = torch.rand(2, 3, 24, 32)
    block = vit.backbone.blocks[-1]
    with torch.no_grad():  # larger weights than at the start, so that heads differ
        block.attn.qkv.weight.normal_(std=0.5)
        block.attn.qkv.bias.normal_()
        embedded = vit.embed(vit.normalise(image))
        tokens_BND = block.norm1(vit.through(embedded, 0, 1))
        qkv_BNE = tokens_BND @ block.attn.qkv.weight.T + block.attn.qkv.bias
    expected_BN = torch.zeros(2, 12)
    for head in (slice(0, 8), slice(8, 16)):  # two heads of eight channels: q, k and v side by side
        q_BE, k_BNE = qkv_BNE[:, 0, :16][:, head], qkv_BNE[:, :, 16:32][:, :, head]
        scores_BN = ((q_BE[:, None] * k_BNE).sum(2) / 8**0.5).exp()
        expected_BN += (scores_BN / scores_BN.sum(1, keepdim=True))[:, 1:] / 2
    calls = []
    vit.register_forward_hook(lambda *_: calls.append(1))
    for kinds in (["attention"], ["attention", "grad", "class_map"]):
        maps, _ = view_maps(vit, Classify(vit).maps_of, image, kinds)
        assert list(maps) == kinds and maps["attention"].shape == (2, 2, 3, 4)
        for of_class in maps["attention"].unbind(1):
            torch.testing.assert_close(of_class, expected_BN.unflatten(1, (3, 4)))
    assert len(calls) == 2
    assert not block.attn._forward_pre_hooks


def test_the_attention_of_toco_is_read_beside_its_own_outputs():
    network = tiny_toco().eval()
    image = torch.rand(1, 3, 32, 32)
    maps, probs = view_maps(network, lambda out: out.maps, image, ["attention", "seg"])
    torch.testing.assert_close(probs, network(image).cls_logits_BK.sigmoid())
    assert maps["attention"].shape == (1, 3, 4, 4) and maps["attention"].min() > 0


class OtherAttention(Attention):
    """As timm's differential attention: it has queries and keys, but other weights."""


def other_vit():
    vit = tiny_vit()
    vit.backbone.blocks[-1].attn.__class__ = OtherAttention
    return vit


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (tiny_cnn, "a CNN has no attention to read"),
        (tiny_segmenter, "a Segmenter has no attention to read"),
        (partial(tiny_vit, class_token=False), "no class token"),
        (other_vit, "weights of OtherAttention cannot be read"),
    ],
)
def test_a_network_without_such_attention_is_told(network, reason):
    network = network().eval()
    with pytest.raises(ValueError, match=reason):
        view_maps(network, lambda out: {}, torch.rand(1, 3, 32, 32), ["attention"])


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
    cams, probs = multi_scale_cam(brightness_maps, image, stride=8, rule=CamRule(scales=(0.5, 1.0)))
    small, small_probs = brightness_maps(resize(image, (16, 24)))
    whole, whole_probs = brightness_maps(image)
    expected = (normalise_cam(whole["class_map"]) + resize(normalise_cam(small["class_map"]), (4, 6))) / 2
    torch.testing.assert_close(cams["class_map"], expected)
    assert cams["class_map"].shape == (2, 1, 4, 6)
    torch.testing.assert_close(probs, (whole_probs + small_probs) / 2)


def test_scale_one_alone_changes_nothing():
    image = torch.rand(1, 3, 32, 32)
    cams, _ = multi_scale_cam(brightness_maps, image, stride=8, rule=CamRule())
    torch.testing.assert_close(cams["class_map"], normalise_cam(brightness_maps(image)[0]["class_map"]))


def test_flip_makes_the_cam_of_the_mirrored_image_the_mirrored_cam():
    vit = tiny_vit().eval()
    image = torch.rand(1, 3, 32, 32)

    def maps(view):
        return view_maps(vit, Classify(vit).maps_of, view, ["class_map"])

    plain, _ = multi_scale_cam(maps, image, stride=8, rule=CamRule(flip=True))
    mirrored, _ = multi_scale_cam(maps, image.flip(-1), stride=8, rule=CamRule(flip=True))
    torch.testing.assert_close(plain["class_map"], mirrored["class_map"].flip(-1), atol=1e-6, rtol=1e-5)


def test_layer_cam_weighs_each_position_by_its_own_positive_gradient():
    activation = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])
    gradient = torch.tensor([[[1.0, 3.0]], [[-1.0, 0.5]]])
    assert layer_cam(activation, gradient).tolist() == [[1.0, 2 * 3 + 4 * 0.5]]


def test_a_layer_by_two_numbers_is_told():
    with pytest.raises(ValueError, match=r"cam.layers is \[-1, 1\], which names one layer twice; leave one out"):
        gradient_maps(tiny_vit(), torch.zeros(1, 3, 32, 32), ["grad"], (-1, 1))


def test_fused_layers_match_the_golden_vectors(golden):
    g = {name: torch.from_numpy(value) for name, value in golden("camfuse_p0").items() if value.dtype.kind in "fi"}
    resized = []
    for scale in range(int(g["n_scales"])):
        raw = grad_cam(g[f"s{scale}_activations"].double(), g[f"s{scale}_gradients"].double())
        torch.testing.assert_close(raw, g[f"s{scale}_raw_f64"], atol=1e-9, rtol=1e-9)
        size = tuple(g[f"s{scale}_input_size"].tolist())
        layers = [of_layer[:, None] for of_layer in raw]
        fused = fuse_layers(layers, size)[:, 0]
        torch.testing.assert_close(fused.double(), g[f"s{scale}_fused_f64"], atol=2e-6, rtol=0)
        alone = fuse_layers(layers[:1], size)[:, 0]
        torch.testing.assert_close(alone.double(), g[f"s{scale}_layer0_only_f64"], atol=2e-6, rtol=0)
        resized.append(resize(fused[:, None], g["target_size"].tolist())[:, 0])
    torch.testing.assert_close(torch.stack(resized).mean(0).double(), g["multiscale_mean_f64"], atol=2e-6, rtol=0)


@pytest.mark.parametrize("finest", [(6, 3), (2, 8)])
def test_layers_are_fused_on_the_grid_of_most_cells(finest):
    layers = [torch.randn(1, 2, *grid) for grid in ((2, 4), finest, (3, 3))]
    assert torch.equal(to_cam("grad", layers), fuse_layers(layers, finest))


def test_a_layer_fused_with_itself_is_that_layer():
    raw = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(fuse_layers([raw, raw], (4, 4)), normalise_cam(raw), atol=1e-5, rtol=0)


def test_windows_begin_at_every_step_and_end_at_the_border():
    assert window_starts(100, 40, 32) == [0, 32, 60]
    assert window_starts(104, 40, 32) == [0, 32, 64]
    assert window_starts(40, 40, 32) == [0]


def test_windows_of_a_local_map_are_stitched_without_a_seam():
    # a map that depends on its own cell alone must come out as if the whole frame had been seen at once
    def view(image):
        fine, coarse = (resize(image[:, :1], [side // cell for side in image.shape[-2:]]) for cell in (8, 16))
        return {"x": fine, "layers": [fine, coarse]}, image.mean(dim=(2, 3))[:, :1]

    frame = torch.rand(2, 3, 48, 80)
    windowed = sliding_window(view, window_px=32, step_px=16, stride=8, batch_size=3)
    for seen in (frame, frame[..., :16, :], frame[..., :16]):  # the last two are smaller than a window on one side
        torch.testing.assert_close(windowed(seen)[0], view(seen)[0], atol=1e-6, rtol=0)
    assert windowed(frame[..., :32, :32])[0]["x"].shape == (2, 1, 4, 4)


def test_windows_that_disagree_pass_into_each_other_gradually():
    calls = iter(range(10))

    def view(image):  # the first window sees 0 everywhere, the second 1
        return {"x": torch.stack([torch.full((1, 4, 4), float(next(calls))) for _ in image])}, image[:, :1, 0, 0]

    row = sliding_window(view, window_px=32, step_px=16, stride=8)(torch.zeros(1, 3, 32, 48))[0]["x"][0, 0, 0]
    assert row[0] == 0 and row[-1] == 1 and (row.diff() >= 0).all() and row.diff().max() < 0.5


def test_the_probability_of_a_frame_is_that_of_its_most_suspicious_window():
    def view(image):
        return {"x": image[:, :1, ::8, ::8]}, image.amax(dim=(2, 3))[:, :1]

    frame = torch.zeros(1, 3, 32, 64)
    frame[..., 40] = 0.8
    assert sliding_window(view, window_px=32, step_px=16, stride=8)(frame)[1].item() == pytest.approx(0.8)


def test_windows_off_the_networks_grid_are_refused():
    with pytest.raises(ValueError, match="must be multiples of the network's stride 16"):
        sliding_window(lambda image: ({}, image), window_px=500, step_px=256, stride=16)
    with pytest.raises(ValueError, match="the step at most the window"):
        sliding_window(lambda image: ({}, image), window_px=512, step_px=528, stride=16)
