import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wsss.maps.gradients import gradient_maps
from wsss.models.pcm import PCM, affinity_of, build_pcm, correlate

NARROW = {"channels": (8, 8, 16, 16), "layers": (1, 1, 1, 2)}


def tiny_pcm(num_classes: int = 2, **options) -> PCM:
    """A ResNet of four narrow stages; 32 px images give a 4 x 4 map."""
    sizes = {"output_stride": 8, "conv_dim": 12, "f8_dim": 6, "affinity_dim": 10, **options}
    return build_pcm(num_classes, timm_name="resnet10t", timm_options=NARROW, **sizes)


def golden_pcm(arrays) -> PCM:
    """The golden weights, of one class and the untrained background."""
    sizes = {"conv_dim": 20, "f8_dim": 8, "affinity_dim": 16}
    pcm = PCM(nn.Identity(), (12, 16), 1, 16, (0.0,) * 3, (1.0,) * 3, **sizes, background=True)
    values = {name[2:]: torch.from_numpy(value) for name, value in arrays.items() if name.startswith("w.")}
    with torch.no_grad():
        for name in ("f8_3", "f8_4", "f9"):
            getattr(pcm, name).weight.copy_(values[f"{name}.weight"][..., None, None])
            getattr(pcm, name).bias.copy_(values[f"{name}.bias"])
        for row, readout in enumerate((pcm.head, pcm.background)):
            readout.weight.copy_(values["fc8.weight"][row : row + 1, :, None, None])
            readout.bias.copy_(values["fc8.bias"][row : row + 1])
    return pcm


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_features_affinity_and_maps_equal_the_golden_vectors(golden, dtype, tolerance):
    arrays = golden("pcm_p0")
    pcm = golden_pcm(arrays).to(dtype)
    image, layer3, layer4, conv6 = (
        torch.from_numpy(arrays[n]).to(dtype) for n in ("image", "layer3", "layer4", "conv6")
    )
    with torch.no_grad():
        features = pcm.affinity_features(image, layer3, layer4)
        affinity = affinity_of(features)
        summed, plain = pcm.class_maps(conv6, affinity)
    found = {"f": features, "affinity": affinity, "cam": plain, "cam_att": summed - plain, "featmap": summed}
    found["logits"] = summed[:, :1].mean(dim=(2, 3))
    for name, value in found.items():
        expected = torch.from_numpy(arrays[f"{name}_f64"]).to(dtype)
        torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def test_correlating_the_maps_equals_correlating_the_features(golden):
    arrays = golden("pcm_p0")
    pcm = golden_pcm(arrays).double()
    affinity, conv6 = torch.from_numpy(arrays["affinity_f64"]), torch.from_numpy(arrays["conv6"]).double()
    weight = torch.cat([pcm.head.weight, pcm.background.weight])
    bias = torch.cat([pcm.head.bias, pcm.background.bias])
    after = F.conv2d(correlate(conv6, affinity), weight, bias)  # the published order: D channels, then fc8
    before = correlate(F.conv2d(conv6, weight), affinity) + bias.view(-1, 1, 1)
    torch.testing.assert_close(before, after, rtol=0, atol=1e-12)
    torch.testing.assert_close(after.detach(), torch.from_numpy(arrays["cam_att_f64"]), rtol=0, atol=1e-9)
    with_bias_inside = correlate(F.conv2d(conv6, weight, bias), affinity).detach()
    torch.testing.assert_close(with_bias_inside, torch.from_numpy(arrays["pcm_of_cam_f64"]), rtol=0, atol=1e-9)


def test_two_positions_by_hand():
    # g = (1, 0), (1, 1) / sqrt 2: a = [[1, r], [r, 1]] with r = 1 / sqrt 2, and columns over 1 + r
    features = torch.tensor([[[[1.0, 2.0]], [[0.0, 2.0]]]], dtype=torch.float64)
    r = 0.5**0.5
    expected = torch.tensor([[[1.0, r], [r, 1.0]]], dtype=torch.float64) / (1 + r)
    torch.testing.assert_close(affinity_of(features), expected, rtol=0, atol=3e-5)
    spread = correlate(torch.tensor([[[[3.0, 0.0]]]], dtype=torch.float64), expected)
    assert spread.flatten().tolist() == pytest.approx([3 / (1 + r), 3 * r / (1 + r)])


def test_unlike_positions_do_not_exchange():
    features = torch.tensor([[[[1.0, -1.0, 0.0]], [[0.0, 0.0, 1.0]]]])  # opposite, and at a right angle
    torch.testing.assert_close(affinity_of(features), torch.eye(3)[None], rtol=0, atol=3e-5)


def test_columns_sum_to_one_so_constants_are_kept():
    affinity = affinity_of(torch.randn(2, 7, 5, 3))
    torch.testing.assert_close(affinity.sum(dim=1), torch.ones(2, 15), rtol=0, atol=2e-5)
    constant = torch.full((2, 4, 5, 3), 2.5)
    torch.testing.assert_close(correlate(constant, affinity), constant, rtol=0, atol=1e-4)


def test_a_zero_feature_takes_nothing_and_has_a_finite_gradient():
    features = torch.randn(1, 4, 2, 2)
    features[..., 0, 0] = 0
    features.requires_grad_()
    affinity = affinity_of(features)
    assert (affinity[0, :, 0] == 0).all()
    (affinity * torch.randn(1, 4, 4)).sum().backward()
    assert features.grad.isfinite().all()


def test_a_forward_pass_gives_logits_and_both_maps():
    pcm = tiny_pcm(num_classes=3).eval()
    out = pcm(torch.rand(2, 3, 32, 32))
    assert out.patches_BDhw.shape == (2, 12, 4, 4) and (out.patches_BDhw >= 0).all()
    assert out.class_map_BKhw.shape == (2, 3, 4, 4)
    torch.testing.assert_close(out.cls_logits_BK, out.class_map_BKhw.mean(dim=(2, 3)))
    assert set(out.maps) == {"no_pcm"}
    torch.testing.assert_close(out.maps["no_pcm"], pcm.head(out.patches_BDhw))


@pytest.mark.parametrize(("stride", "grid"), [(8, (13, 10)), (32, (4, 3))])  # at 32 the two stages differ in size
def test_odd_sizes_work(stride, grid):
    out = tiny_pcm(output_stride=stride).eval()(torch.rand(1, 3, 97, 75))
    assert out.class_map_BKhw.shape == (1, 2, *grid)


def test_every_trainable_parameter_gets_a_gradient():
    for name in ("resnet10t", "tf_efficientnet_lite0"):  # the second has a convolution behind its last stage
        pcm = build_pcm(2, timm_name=name, conv_dim=8, f8_dim=4, affinity_dim=8, background=True)
        pcm(torch.rand(2, 3, 32, 32)).cls_logits_BK.square().sum().backward()
        idle = [n for n, p in pcm.named_parameters() if p.requires_grad and p.grad is None]
        assert idle == []


def test_the_background_is_frozen_seeded_and_in_no_logit():
    def seeded(background: bool) -> tuple[PCM, torch.Tensor]:
        torch.manual_seed(5)
        return tiny_pcm(background=background).eval(), torch.rand(2, 3, 32, 32)

    (without, image), (with_it, same_image) = seeded(False), seeded(True)
    assert torch.equal(image, same_image)  # it draws nothing from the global generator
    out, plain = with_it(image), without(image)
    torch.testing.assert_close(out.cls_logits_BK, plain.cls_logits_BK)
    torch.testing.assert_close(out.class_map_BKhw, plain.class_map_BKhw)
    assert out.maps["background"].shape == (2, 1, 4, 4)
    raw = with_it.background(out.patches_BDhw)
    assert not torch.allclose(out.maps["background"], raw, atol=1e-3)  # it went through the PCM too
    assert [n for n, p in with_it.named_parameters() if not p.requires_grad] == ["background.weight", "background.bias"]
    assert torch.equal(with_it.background.weight, tiny_pcm(background=True).background.weight)
    assert "background.weight" in with_it.state_dict()
    wide = tiny_pcm(background=True, conv_dim=2048).background
    assert wide.weight.std().item() == pytest.approx(1.0, abs=0.1) and not wide.bias.any()


def test_undilated_means_stride_1_and_nothing_else():
    dilated, published = tiny_pcm(output_stride=16), tiny_pcm(output_stride=16, dilated=False)
    spacing = {m.dilation for m in dilated.backbone.modules() if isinstance(m, nn.Conv2d)}
    assert spacing == {(1, 1), (2, 2)}
    assert {m.dilation for m in published.backbone.modules() if isinstance(m, nn.Conv2d)} == {(1, 1)}
    for norm in (m for m in dilated.backbone.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.ones_(norm.weight)  # timm starts each residual branch at 0
    published.load_state_dict(dilated.state_dict())
    image = torch.rand(1, 3, 64, 64)
    one, other = dilated.eval()(image), published.eval()(image)
    assert one.class_map_BKhw.shape == other.class_map_BKhw.shape == (1, 2, 4, 4)
    assert not torch.allclose(one.patches_BDhw, other.patches_BDhw, atol=1e-4)


def test_the_affinity_is_float32_under_autocast():
    features = torch.randn(1, 6, 4, 4, dtype=torch.bfloat16)
    expected = affinity_of(features.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        affinity = affinity_of(features)
        spread = correlate(torch.randn(1, 2, 4, 4), affinity)
        logits = tiny_pcm().eval()(torch.rand(1, 3, 32, 32)).cls_logits_BK
    assert affinity.dtype == spread.dtype == logits.dtype == torch.float32
    assert torch.equal(affinity, expected)


def test_grad_cam_reads_the_stages():
    pcm = tiny_pcm().eval()
    maps, out = gradient_maps(pcm, torch.rand(2, 3, 32, 32), layers=(-2, -1))
    assert [raw.shape for raw in maps["grad"]] == [(2, 2, 4, 4)] * 2 and all(raw.any() for raw in maps["grad"])
    assert set(out.maps) == {"no_pcm"}
    assert pcm.grad_cam_layer(-1) is pcm.backbone.layer4
    lite = build_pcm(1, timm_name="tf_efficientnet_lite0", conv_dim=8, f8_dim=4, affinity_dim=8)
    assert lite.grad_cam_layer(-1) is lite.backbone.blocks[-1]


def test_its_own_layers_begin_as_published():
    narrow = {"channels": (8, 8, 16, 16), "layers": (1, 1, 1, 1)}
    pcm = build_pcm(1, timm_name="resnet10t", conv_dim=64, f8_dim=64, affinity_dim=64, timm_options=narrow)
    for layer, window in ((pcm.conv6[0], 9), (pcm.f8_3, 1), (pcm.f8_4, 1), (pcm.f9, 1)):
        assert layer.weight.std().item() == pytest.approx((2 / (window * 64)) ** 0.5, rel=0.1)
    assert not any(layer.bias.any() for layer in (pcm.f8_3, pcm.f8_4, pcm.f9))


def test_a_network_without_stages_is_refused():
    with pytest.raises(ValueError, match=r"'vit_tiny_patch16_224' .*output_stride.*choose a CNN"):
        build_pcm(1, timm_name="vit_tiny_patch16_224", timm_options={"img_size": 64, "depth": 2})
    with pytest.raises(ValueError, match=r"gives stages .* wanted 2, the last on 8 x 8"):  # an even dilated kernel
        build_pcm(1, timm_name="convnext_atto", output_stride=8, dilated=False)


def test_a_seeded_run_learns_through_the_affinity():
    pcm = tiny_pcm(num_classes=1)
    frozen = {id(p) for layer in (pcm.backbone, pcm.conv6, pcm.head) for p in layer.parameters()}
    image, target = torch.rand(2, 3, 32, 32), torch.tensor([[1.0], [0.0]])
    optimizer = torch.optim.SGD([p for p in pcm.parameters() if id(p) not in frozen], lr=1.0)
    losses = []
    for _ in range(5):
        loss = F.binary_cross_entropy_with_logits(pcm.eval()(image).cls_logits_BK, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]


@pytest.mark.real_data
def test_real_weights_load(real_data):
    weights = str(real_data / "weights" / "resnet50_augnet_imgsim_backbone_fp16.pth")
    pcm = build_pcm(1, timm_name="resnet50", weights=weights)
    assert sum(p.numel() for p in pcm.parameters()) == pytest.approx(62.3e6, rel=1e-3)  # the published count
