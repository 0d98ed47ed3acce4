"""Transformers whose map gets coarser from stage to stage, and CNNs that timm does not dilate, as networks of ours."""

import pytest
import timm
import torch
from support.methods import batch_of
from support.networks import SWIN, tiny_cnn, tiny_swin, tiny_vit

from wsss.maps.cam import has_attention, view_maps
from wsss.maps.fusion import CamRule, multi_scale_cam
from wsss.maps.gradients import gradient_maps
from wsss.methods import METHODS
from wsss.methods.base import Frozen
from wsss.models.cnn import build_cnn
from wsss.models.toco import build_toco
from wsss.models.vit import build_vit

SHORT = {"depths": (1, 1, 1, 1)}
PYRAMIDS = {
    "Swin": ("swin_tiny_patch4_window7_224", SWIN),
    "Swin 2": ("swinv2_tiny_window8_256", SWIN),
    "ConvNeXt": ("convnext_atto", SHORT),
    "PVT 2": ("pvt_v2_b0", SHORT),
    "MambaOut, channels last": ("mambaout_femto", {**SHORT, "dims": (4, 8, 8, 16)}),
}


def pyramid(name, num_classes=2):
    timm_name, options = PYRAMIDS[name]
    return build_cnn(num_classes, timm_name=timm_name, output_stride=None, timm_options=dict(options))


@pytest.mark.parametrize("name", PYRAMIDS)
def test_the_features_are_those_of_timm_at_any_multiple_of_the_stride(name):
    network = pyramid(name).eval()
    timm_name, options = PYRAMIDS[name]
    own_size = {"strict_img_size": False} if "swin" in timm_name else {}
    theirs = timm.create_model(timm_name, num_classes=0, **own_size, **options).eval()
    theirs.load_state_dict(network.backbone.state_dict())
    for rows, columns in ((4, 4), (3, 5)):
        image = torch.rand(2, 3, rows * network.stride, columns * network.stride)
        with torch.no_grad():
            expected = theirs.forward_features(network.normalise(image))
            out = network(image)
        if expected.shape[-1] == network.feature_dim:
            expected = expected.permute(0, 3, 1, 2)
        assert torch.equal(out.patches_BDhw, expected)
        assert out.class_map_BKhw.shape == (2, 2, rows, columns)
        torch.testing.assert_close(out.cls_logits_BK, out.class_map_BKhw.mean(dim=(2, 3)))


@pytest.mark.parametrize("name", PYRAMIDS)
def test_a_file_of_timm_is_its_initial_weights(name, tmp_path):
    timm_name, options = PYRAMIDS[name]
    theirs = timm.create_model(timm_name, num_classes=7, **options)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    ours = build_cnn(
        1, timm_name=timm_name, weights=str(tmp_path / "theirs.pth"), output_stride=None, timm_options=dict(options)
    )
    state = theirs.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in ours.backbone.state_dict().items())


def test_the_stride_is_that_of_the_network():
    assert [pyramid(name).stride for name in PYRAMIDS] == [8, 8, 32, 32, 32]
    finer = build_cnn(
        1, timm_name="swin_tiny_patch4_window7_224", output_stride=None, timm_options=SWIN | {"patch_size": 2}
    )
    assert finer.stride == 4


def test_grad_cam_by_hand_at_each_stage_of_swin():
    network = tiny_swin(2).eval()
    image = torch.rand(2, 3, 32, 48)
    maps, _ = gradient_maps(network, image, ("grad",), (0, -1))
    assert [tuple(found.shape) for found in maps["grad"]] == [(2, 2, 8, 12), (2, 2, 4, 6)]
    kept: list[torch.Tensor] = []
    network.backbone.layers[-1].register_forward_hook(lambda module, inputs, output: kept.append(output))
    logits_BK = network(image).cls_logits_BK
    for k in range(2):
        (gradient_BhwD,) = torch.autograd.grad(logits_BK[:, k].sum(), kept[0], retain_graph=True)
        expected_Bhw = torch.einsum("bd,bhwd->bhw", gradient_BhwD.mean(dim=(1, 2)), kept[0])
        torch.testing.assert_close(maps["grad"][1][:, k], expected_Bhw)


def networks(name, student):
    method = METHODS[name]
    return [
        student,
        *([Frozen(tiny_cnn())] if method.needs_teacher else []),
        *([tiny_cnn()] if method.needs_partner else []),
    ]


@pytest.mark.parametrize("name", ["classify", "distill", "cotrain", "mixed"])
def test_a_step_trains_all_of_a_pyramid_and_its_maps_are_fused_at_any_scale(name):
    method = METHODS[name](*networks(name, tiny_swin()))
    method.train()(batch_of(), 0)["loss"].backward()
    assert not [key for key, p in method.named_parameters() if p.requires_grad and p.grad is None]
    kinds = ["class_map", "grad", "layer", *(["project"] if name in ("distill", "cotrain") else [])]
    student = method.eval().student
    view = lambda image: view_maps(student, method.maps_of, image, kinds)  # noqa: E731
    cams, _ = multi_scale_cam(view, torch.rand(1, 3, 44, 30), stride=8, rule=CamRule(scales=(1.0, 0.5, 1.5), flip=True))
    assert set(cams) == set(kinds) and all(cam.max() <= 1 for cam in cams.values())


def test_a_pyramid_teaches_a_vit_and_learns_beside_it():
    for method in (METHODS["distill"](tiny_vit(), Frozen(tiny_swin())), METHODS["cotrain"](tiny_vit(), tiny_swin())):
        losses = method.train()(batch_of(), 0)
        assert torch.isfinite(losses["align_loss"]) and losses["align_loss"] > 0


def test_what_a_pyramid_cannot_is_told():
    swin = tiny_swin()
    assert not has_attention(swin)
    with pytest.raises(ValueError, match="a CNN has no attention to read; choose a ViT"):
        view_maps(swin, lambda out: {}, torch.rand(1, 3, 32, 32), ["attention"])
    with pytest.raises(ValueError, match="images of 30 x 45 px; this SwinTransformer .* stride 8, such as 32 x 48"):
        swin(torch.rand(1, 3, 30, 45))
    for method in ("toco", "msee"):
        with pytest.raises(
            ValueError, match="toco and msee train a network of model 'toco', a plain ViT with .*, not CNN"
        ):
            METHODS[method](swin)
    for build in (build_vit, build_toco):
        with pytest.raises(
            ValueError, match="is a SwinTransformer, not a ViT .* needs model.name=cnn with output_stride: null"
        ):
            build(1, timm_name="swin_tiny_patch4_window7_224", timm_options=dict(SWIN))


@pytest.mark.parametrize(
    ("timm_name", "options", "message"),
    [
        (
            "swin_tiny_patch4_window7_224",
            {"output_stride": 16},
            "output_stride=16: TypeError .*or model.output_stride=null|another output_stride, null for its own",
        ),
        (
            "coatnet_pico_rw_224",
            {"output_stride": None},
            "does not run as a network of 64 x 128 px .* of any size, such",
        ),
        ("mvitv2_tiny", {"output_stride": None}, r"gives features \(1, 8, 768\) instead of a map"),
        ("crossvit_tiny_240", {"output_stride": None}, "gives a list instead of a map"),
        ("resnet10t", {"output_stride": 32, "timm_options": {"output_stride": 8}}, "wanted .* null for its own"),
    ],
)
def test_a_network_without_one_map_of_any_size_is_refused(timm_name, options, message):
    with pytest.raises(ValueError, match=message):
        build_cnn(1, timm_name=timm_name, **options)
