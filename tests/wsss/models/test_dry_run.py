"""Networks of timm that cannot do what is asked of them are refused when they are built, by name."""

import pytest
import timm
import torch
from support.networks import tiny_affinity_net, tiny_cnn, tiny_pcm, tiny_segmenter, tiny_swin, tiny_toco, tiny_vit
from support.photographs import Colours

from wsss.maps.gradients import gradient_maps
from wsss.models.affinity_net import build_affinity_net
from wsss.models.cnn import build_cnn
from wsss.models.deeplab import build_deeplab
from wsss.models.dry_run import find_unread, try_network
from wsss.models.pcm import build_pcm
from wsss.models.segmenter import build_segmenter
from wsss.models.toco import build_toco
from wsss.models.vit import build_vit

NO_VIT = [
    "vit_tiny_r_s16_p8_224",  # its patches come out of a CNN
    "vit_pwee_patch16_reg1_gap_256",  # attention and MLP of a block side by side
    "deit_tiny_distilled_patch16_224",
    "cait_xxs24_224",
    "resnet18",
    "no_such_network",
]
NO_CNN = ["vgg16", "hrnet_w18_small", "dpn48b", "ghostnet_050", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"]


@pytest.mark.parametrize("name", NO_VIT)
@pytest.mark.parametrize("build", [build_vit, build_toco, build_segmenter])
def test_what_is_no_plain_vit_is_refused_by_name(build, name):
    with pytest.raises(ValueError, match=rf"^model\.timm_name: .*'{name}'.+"):
        build(1, timm_name=name)


@pytest.mark.parametrize("name", NO_CNN)
@pytest.mark.parametrize("build", [build_cnn, build_pcm, build_deeplab, build_affinity_net])
def test_what_is_no_cnn_of_this_stride_is_refused_by_name(build, name):
    with pytest.raises(ValueError, match=rf"^model\.timm_name: .*'{name}'.*choose a(nother| CNN)"):
        build(1, timm_name=name)


@pytest.mark.parametrize("name", ["regnety_002", "rexnet_100", "convnext_atto", "efficientnet_lite0"])
def test_stages_of_any_name_are_read_by_grad_cam(name):
    cnn = build_cnn(2, timm_name=name).eval()
    maps, _ = gradient_maps(cnn, torch.rand(1, 3, 64, 64), layers=(-2, -1))
    assert maps["grad"][1].shape == (1, 2, 4, 4) and maps["grad"][1].abs().max() > 0


def test_a_layer_that_is_not_there_is_told_with_those_that_are():
    for network, count in ((tiny_vit(), 2), (tiny_cnn(), 4), (tiny_pcm(), 4)):
        with pytest.raises(ValueError, match=rf"cam\.layers: no layer 9; this network has {count}"):
            gradient_maps(network, torch.rand(1, 3, 32, 32), layers=(-1, 9))


class Deaf(torch.nn.Module):
    """A backbone whose last stage nobody reads."""

    def __init__(self):
        super().__init__()
        self.stages = torch.nn.ModuleList([torch.nn.Conv2d(3, 4, 8, 8), torch.nn.Conv2d(4, 4, 1)])

    def forward_features(self, image):
        features = self.stages[0](image)
        self.stages[1](features)
        return features


def test_a_layer_that_the_scores_do_not_depend_on_is_refused():
    from wsss.models.cnn import CNN

    backbone = Deaf()
    backbone.num_features = 4
    with pytest.raises(ValueError, match="'deaf' does not run as a CNN .*do not depend on its last layer for Grad-CAM"):
        try_network(CNN(backbone, 1, 8, (0, 0, 0), (1, 1, 1)), "deaf", stride=8)


def test_parameters_that_no_output_depends_on_are_frozen_and_named():
    cnn = build_cnn(1, timm_name="convnext_atto")
    assert cnn.unread == ("backbone.head.norm.weight", "backbone.head.norm.bias")
    assert not cnn.backbone.head.norm.weight.requires_grad and cnn.backbone.stem[0].weight.requires_grad
    pooled = build_vit(1, timm_name="vit_tiny_patch16_224", timm_options={"global_pool": "avg", "depth": 1})
    assert pooled.unread == ("backbone.fc_norm.weight", "backbone.fc_norm.bias")


@pytest.mark.parametrize(
    "build", [tiny_vit, tiny_cnn, tiny_swin, tiny_pcm, tiny_segmenter, tiny_toco, tiny_affinity_net]
)
def test_the_dry_run_leaves_no_trace(build):
    torch.manual_seed(3)
    network = build(2)
    after, mode = torch.rand(1), network.training
    torch.manual_seed(3)
    with pytest.MonkeyPatch.context() as patch:
        for module in ("vit", "cnn", "pcm", "affinity_net"):
            patch.setattr(f"wsss.models.{module}.try_network", lambda *_, **__: None)
        plain = build(2)
    assert torch.equal(after, torch.rand(1)) and network.unread == () and mode == plain.training
    assert [m.training for m in network.modules()] == [m.training for m in plain.modules()]
    for name, value in plain.state_dict().items():
        assert torch.equal(value, network.state_dict()[name]), name
    assert [p.requires_grad for p in network.parameters()] == [p.requires_grad for p in plain.parameters()]
    assert not any(m._forward_hooks for m in network.modules())


def test_unread_parameters_are_found_without_a_gradient():
    parts = torch.nn.ModuleDict({"read": torch.nn.Linear(2, 2), "idle": torch.nn.Linear(2, 2)})
    assert find_unread(parts, [parts["read"](torch.ones(1, 2))]) == ("idle.weight", "idle.bias")
    joined = parts["read"](torch.ones(1, 2)).sum() + 0 * sum(p.sum() for p in parts["idle"].parameters())
    assert find_unread(parts, [joined]) == ()
    parts["idle"].requires_grad_(False)
    assert find_unread(parts, [parts["read"].weight]) == ("read.bias",)
    assert parts["read"].weight.grad is None


def test_all_vits_of_a_family_are_told_apart():
    """Those that are accepted give timm's own tokens."""
    for name in timm.list_models("test_vit*"):
        try:
            vit = build_vit(1, timm_name=name).eval()
        except ValueError:
            continue
        side = vit.backbone.patch_embed.img_size[0]
        image = torch.rand(1, 3, side, side)
        with torch.no_grad():
            tokens = vit.backbone.forward_features(vit.normalise(image))
            grid = (side // vit.stride, side // vit.stride)
            torch.testing.assert_close(vit(image).patches_BDhw, vit.grid_of(tokens, grid), msg=name)


def test_a_network_of_ones_own_without_layers_for_grad_cam_says_so():
    with pytest.raises(
        ValueError, match="a Colours names no layers for Grad-CAM .*leave grad and layer out of cam.kin"
    ):
        gradient_maps(Colours(), torch.zeros(1, 3, 16, 16), ["grad"])
