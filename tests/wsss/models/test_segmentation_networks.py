import pytest
import timm
import torch
import torch.nn.functional as F
from packaging.version import Version
from support.networks import tiny_deeplab
from torch import nn

from wsss.methods.base import Frozen
from wsss.models.deeplab import ASPP, build_deeplab
from wsss.models.segmentation import logsumexp_of_others, segmentation_outputs
from wsss.models.segmenter import MaskTransformer, build_segmenter
from wsss.models.setr import SETR

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
CNN = {"channels": (8, 8, 16, 24), "layers": (1, 1, 1, 1), "zero_init_last": False}


def tiny_setr(num_classes=2, **options):
    tiny = {"patch_size": 8, "image_size": 32, "hidden_dim": 32, "mlp_dim": 32, "layers": 2, "heads": 2}
    return SETR(num_classes, **{**tiny, "widths": (32, 16), **options})


def tiny_segmenter(num_classes=2, **options):
    tiny = {"timm_options": VIT, "decoder_layers": 1, "decoder_dim": 24, "mask_norm": "scale"}
    return build_segmenter(num_classes, timm_name="vit_tiny_patch16_224", **{**tiny, **options})


NETWORKS = {"setr": (tiny_setr, 1, 16), "segmenter": (tiny_segmenter, 8, 24), "deeplab": (tiny_deeplab, 4, 16)}
each_network = pytest.mark.parametrize(("build", "cell_px", "dim"), NETWORKS.values(), ids=NETWORKS)


@each_network
@pytest.mark.parametrize("size", [(32, 32), (48, 80)])
def test_every_position_has_a_score_for_every_class(build, cell_px, dim, size):
    out = build(num_classes=3).eval()(torch.rand(2, 3, *size))
    grid = tuple(side // cell_px for side in size)
    assert out.seg_logits_BChw.shape == (2, 4, *grid)
    assert out.class_map_BKhw.shape == (2, 3, *grid)
    assert out.patches_BDhw.shape == (2, dim, *grid)
    assert out.cls_logits_BK.shape == (2, 3)


@pytest.mark.parametrize("build", [tiny_setr, tiny_segmenter])
def test_sides_that_are_no_multiple_of_the_patch_are_cut_down(build):
    network, image = build().eval(), torch.rand(1, 3, 45, 30)
    torch.testing.assert_close(network(image).seg_logits_BChw, network(image[..., :40, :24]).seg_logits_BChw)


def test_deeplab_covers_odd_sides():
    assert tiny_deeplab().eval()(torch.rand(1, 3, 45, 30)).seg_logits_BChw.shape == (1, 3, 12, 8)


@each_network
def test_every_parameter_learns_from_the_masks(build, cell_px, dim):
    network = build()
    out = network(torch.rand(4, 3, 32, 48))
    F.cross_entropy(out.seg_logits_BChw, torch.randint(0, 3, out.seg_logits_BChw[:, 0].shape)).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@each_network
def test_two_images_are_learned_by_heart(build, cell_px, dim):
    network = build(num_classes=2)
    image = torch.rand(2, 3, 32, 32)
    truth = torch.randint(0, 3, (2, 2, 2)).repeat_interleave(16 // cell_px, 1)
    truth = truth.repeat_interleave(16 // cell_px, 2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    losses = []
    for _ in range(40):
        loss = F.cross_entropy(network(image).seg_logits_BChw, truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.5 and losses[-1] < 0.25


@each_network
def test_a_score_depends_on_the_whole_of_its_image_and_on_no_other(build, cell_px, dim):
    network, image = build().eval(), torch.rand(2, 3, 64, 64)
    scores = network(image).seg_logits_BChw
    torch.testing.assert_close(network(image[1:]).seg_logits_BChw, scores[1:])
    image[1, :, -8:, -8:] = 0
    changed = (network(image).seg_logits_BChw - scores).abs().amax(dim=1)
    assert changed[0].max() < 1e-5 < changed[1, 0, 0]


@each_network
def test_the_class_map_is_the_logit_of_the_softmax_probability(build, cell_px, dim):
    out = build(num_classes=3).eval()(torch.rand(2, 3, 32, 32))
    probs = out.seg_logits_BChw.softmax(dim=1)[:, 1:]
    torch.testing.assert_close(out.class_map_BKhw.sigmoid(), probs)
    torch.testing.assert_close(out.cls_logits_BK.sigmoid(), probs.amax(dim=(2, 3)))


@each_network
def test_they_can_be_frozen_and_have_no_grad_cam_layer(build, cell_px, dim):
    network = build()
    assert not Frozen(network)(torch.rand(1, 3, 32, 32)).seg_logits_BChw.requires_grad
    with pytest.raises(ValueError, match="no Grad-CAM layer; use kind 'seg'"):
        network.grad_cam_layer(-1)


def test_class_maps_by_hand():
    z = torch.tensor([0.0, 3.0, 1.0]).view(1, 3, 1, 1)
    out = segmentation_outputs(z, torch.rand(1, 4, 1, 1))
    expected = torch.tensor([3 - 1.3132617, 1 - 3.0485874])  # log(1 + e), log(1 + e^3)
    torch.testing.assert_close(out.class_map_BKhw.flatten(), expected)
    one = segmentation_outputs(torch.tensor([2.0, 5.0]).view(1, 2, 1, 1), torch.rand(1, 4, 1, 1))
    assert one.cls_logits_BK.item() == 3.0  # with one class, its score over the background's


def test_class_maps_hold_where_softmax_is_one_to_the_last_bit():
    z = torch.tensor([0.0, 200.0, -200.0]).view(1, 3, 1, 1).requires_grad_()
    out = segmentation_outputs(z, torch.rand(1, 4, 1, 1))
    assert out.class_map_BKhw.flatten().tolist() == [200.0, -400.0]
    out.class_map_BKhw[0, 0].sum().backward()
    assert z.grad.flatten().tolist() == [-1.0, 1.0, 0.0]


def test_the_sum_over_the_others_equals_the_plain_one_and_half_precision_is_widened():
    z = torch.randn(2, 21, 3, 4, dtype=torch.float64)
    plain = [torch.cat([z[:, :k], z[:, k + 1 :]], dim=1).logsumexp(dim=1) for k in range(21)]
    torch.testing.assert_close(logsumexp_of_others(z), torch.stack(plain, dim=1))
    out = segmentation_outputs(z.bfloat16(), torch.rand(2, 4, 3, 4))
    assert (out.class_map_BKhw.dtype, out.seg_logits_BChw.dtype) == (torch.float32, torch.bfloat16)


def planted(mask_norm, tokens):
    """A mask transformer whose blocks, norm and projection do nothing, with the class tokens (1, 0) and (0, -2)."""
    head = MaskTransformer(2, 2, num_classes=2, layers=0, heads=1, mask_norm=mask_norm)
    head.project, head.norm = nn.Identity(), nn.Identity()
    with torch.no_grad():
        head.cls_token.copy_(torch.tensor([[[1.0, 0.0], [0.0, -2.0]]]))
    return head(tokens)[0]


def test_masks_are_the_cosines_of_patches_and_class_tokens():
    patches = torch.tensor([[[3.0, 0.0], [0.0, 5.0], [3.0, -4.0]]])
    expected = 10 * torch.tensor([[[1.0, 0.0, 0.6], [0.0, -1.0, 0.8]]])
    torch.testing.assert_close(planted("scale", patches), expected)


def test_a_layer_norm_of_two_classes_keeps_little_but_a_sign():
    patches = torch.tensor([[[3.0, 0.0], [0.0, 5.0], [3.0, -4.0]]])
    expected = torch.tensor([[[1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]]])
    torch.testing.assert_close(planted("layer", patches), expected, atol=1e-3, rtol=0)


def test_segmenter_scores_equal_the_formula():
    network = tiny_segmenter(num_classes=2, mask_norm="layer").eval()
    nn.init.normal_(network.head.mask_norm.weight)
    nn.init.normal_(network.head.mask_norm.bias)
    seen = {}
    network.head.norm.register_forward_hook(lambda module, inputs, output: seen.update(tokens=output))
    network.encoder.backbone.norm.register_forward_hook(lambda module, inputs, output: seen.update(encoder=output))
    network.head.project.register_forward_hook(lambda module, inputs, output: seen.update(projected=inputs[0]))
    out = network(torch.rand(1, 3, 32, 24))
    assert torch.equal(seen["projected"], seen["encoder"][:, 1:])  # without the encoder's class token
    patch, classes = seen["tokens"][0, 2 * 3 + 1], seen["tokens"][0, 12:]  # row 2, column 1 of 4 x 3 patches
    masks = torch.stack([patch @ c / (patch.norm() * c.norm()) for c in classes])
    centred = masks - masks.mean()
    normed = centred / (centred.square().mean() + 1e-5).sqrt()
    expected = normed * network.head.mask_norm.weight + network.head.mask_norm.bias
    torch.testing.assert_close(out.seg_logits_BChw[0, :, 2, 1], expected)
    torch.testing.assert_close(out.patches_BDhw[0, :, 2, 1], patch)


def test_setr_has_the_sizes_of_the_upper_bound():
    with torch.device("meta"):
        network = SETR(1)
        seen = {}
        network.decoder.register_forward_hook(lambda module, inputs, output: seen.update(first=inputs[0].shape))
        out = network(torch.rand(2, 3, 512, 512))
    assert network.pos_embed.shape == (1, 16 * 16, 1024)
    assert seen["first"] == (2, 1024, 32, 32)
    assert out.seg_logits_BChw.shape == (2, 2, 512, 512) and out.patches_BDhw.shape == (2, 64, 512, 512)
    assert [stage[0].out_channels for stage in network.decoder] == [512, 256, 128, 64]
    layer = network.blocks[0]
    assert (len(network.blocks), layer.self_attn.num_heads, layer.linear1.out_features) == (6, 16, 1024)
    assert not layer.norm_first
    assert not torch.equal(*(tiny_setr().blocks[i].linear1.weight for i in (0, 1)))  # two draws, not one copied
    unspread = tiny_setr(spread=1, widths=(16, 8, 8)).eval()
    assert unspread(torch.rand(1, 3, 32, 32)).seg_logits_BChw.shape[-2:] == (32, 32)


def test_setr_knows_where_a_patch_is():
    network = tiny_setr().eval()
    image = torch.zeros(1, 3, 32, 32)
    flat = network(image).seg_logits_BChw
    nn.init.normal_(network.pos_embed)
    assert not torch.allclose(network(image).seg_logits_BChw, flat, atol=1e-3)


def test_deeplab_reads_early_and_late_features_of_any_dilated_cnn(tmp_path):
    donor = timm.create_model("resnet10t", num_classes=5, **CNN)
    torch.save(donor.state_dict(), tmp_path / "w.pth")
    network = tiny_deeplab(weights=str(tmp_path / "w.pth")).eval()
    assert torch.equal(network.backbone.layer4[0].conv1.weight, donor.layer4[0].conv1.weight)
    seen = {}
    network.aspp.register_forward_hook(lambda module, inputs, output: seen.update(high=inputs[0].shape))
    network.low.register_forward_hook(lambda module, inputs, output: seen.update(low=inputs[0].shape))
    network(torch.rand(1, 3, 64, 96))
    assert seen == {"low": (1, 8, 16, 24), "high": (1, 24, 4, 6)}


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "convnext_atto"])
def test_deeplab_leaves_out_what_lies_behind_the_features(name):
    if name.startswith("convnext") and Version(timm.__version__) < Version("1.0.31"):
        pytest.skip("timm before 1.0.31 keeps the norm of ConvNeXt's head")
    network = build_deeplab(1, timm_name=name, aspp_dim=8, low_dim=4, decoder_dim=8)
    pyramid = next(module for module in network.modules() if isinstance(module, ASPP))
    assert [branch[0].dilation[0] for branch in pyramid.branches] == [1, 6, 12, 18]  # the published rates at stride 16
    network(torch.rand(2, 3, 32, 32)).seg_logits_BChw.square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: build_deeplab(1, timm_name="vit_tiny_patch16_224"), "'vit_tiny_patch16_224'.*output_stride.*dilate"),
        (
            lambda: tiny_deeplab(timm_options={**CNN, "output_stride": 32}),
            r"features at strides \[2, 4, 8, 16, 32\]; wanted 4 and, last, 16",
        ),
        (lambda: tiny_setr(image_size=36), "model.image_size and model.patch_size are 36 and 8"),
        (lambda: tiny_setr(widths=(8, 8, 8)), r"model.patch_size and spread.* are 8 and 16"),
        (lambda: tiny_setr(heads=3), "model.hidden_dim and model.heads are 32 and 3"),
        (lambda: tiny_segmenter(decoder_heads=5), "model.decoder_heads is 5; wanted a divisor of .* 24 channels"),
        (lambda: tiny_segmenter(decoder_heads=0), "model.decoder_heads is 0; wanted a divisor"),
        (lambda: tiny_segmenter(decoder_dim=0), r"wanted decoder_dim \(0\) >= 1"),
        (lambda: build_segmenter(1, timm_name="resnet10t"), "not a ViT of one grid"),
    ],
)
def test_options_that_do_not_fit_are_told(build, message):
    with pytest.raises(ValueError, match=message):
        build()
