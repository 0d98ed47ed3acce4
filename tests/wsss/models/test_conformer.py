from functools import partial

import pytest
import torch
import torch.nn.functional as F
from timm.models import vision_transformer as timm_vit
from torch import nn

from wsss.losses.labels import classification_loss
from wsss.models.conformer import build_conformer, transcam
from wsss.models.conformer_blocks import AttentionMean, Block, ConvTransBlock

TINY = {"channel_ratio": 1, "embed_dim": 16, "depth": 6, "num_heads": 2, "mlp_ratio": 2.0}


def tiny_conformer(num_classes=1, **options):
    return build_conformer(num_classes, **{**TINY, **options})


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({"channel_ratio": 1}, 23_524_704),
        ({}, 37_673_424),
        ({"patch_size": 32}, 38_853_072),
        ({"channel_ratio": 6, "embed_dim": 576, "num_heads": 9}, 83_289_136),
    ],
    ids=["Ti", "S", "S/32", "B"],
)
def test_sizes_are_the_published_ones(options, parameters):
    """Counts of the ImageNet networks as mmpretrain's model zoo states them."""
    with torch.device("meta"):
        network = build_conformer(1000, **options)
    assert sum(p.numel() for p in network.parameters()) == parameters


@pytest.mark.parametrize(("size", "grid"), [((32, 32), (2, 2)), ((48, 80), (3, 5)), ((70, 41), (4, 2))])
def test_maps_and_patches_share_a_grid_at_every_size(size, grid):
    out = tiny_conformer(num_classes=3).eval()(torch.rand(2, 3, *size))
    assert out.cls_logits_BK.shape == out.further_logits[0].shape == (2, 3)
    assert out.patches_BDhw.shape == (2, 16, *grid)
    assert out.class_map_BKhw.shape == out.maps["transcam"].shape == (2, 3, *grid)


def test_large_patches_have_a_coarser_grid_than_the_map():
    out = tiny_conformer(patch_size=32).eval()(torch.rand(1, 3, 64, 96))
    assert out.class_map_BKhw.shape == (1, 1, 4, 6)
    assert out.maps["transcam"].shape == (*out.patches_BDhw.shape[:1], 1, 2, 3)


def test_logits_are_the_mean_of_the_class_map_and_the_class_token_has_its_own():
    network = tiny_conformer(num_classes=2).eval()
    image = torch.rand(2, 3, 32, 32)
    out = network(image)
    map_BDhw, tokens_BTD = network.backbone(network.normalise(image))
    torch.testing.assert_close(out.class_map_BKhw, network.head(map_BDhw))
    torch.testing.assert_close(out.cls_logits_BK, out.class_map_BKhw.mean(dim=(2, 3)))
    torch.testing.assert_close(out.further_logits[0], network.trans_head(tokens_BTD[:, 0]))
    torch.testing.assert_close(out.patches_BDhw[1, :, 1, 0], tokens_BTD[1, 1 + 2])  # row-major after the class token


def test_every_parameter_learns_from_the_two_losses():
    network = tiny_conformer(num_classes=2)
    out = network(torch.rand(4, 3, 32, 48))
    label_BK = torch.tensor([[1, 0], [0, 1], [1, 1], [0, 0]])
    loss = sum(classification_loss(z, label_BK) for z in (out.cls_logits_BK, *out.further_logits))
    loss.backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert [name for name in without if not name.endswith("conv_project.bias")] == []  # before a BatchNorm: exactly 0
    assert all(p.grad is not None for p in network.parameters())


def test_two_images_are_learned_by_heart():
    network = tiny_conformer(depth=3)
    image, label_BK = torch.rand(2, 3, 32, 32), torch.tensor([[0.0], [1.0]])
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(35):
        out = network(image)
        loss = sum(classification_loss(z, label_BK) for z in (out.cls_logits_BK, *out.further_logits))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 1.0 and losses[-1] < 0.1


def test_transcam_spreads_the_positive_class_map_by_the_attention():
    class_map = torch.tensor([[[[1.0, -2.0]], [[3.0, 4.0]]]])  # 2 classes on a 1 x 2 grid
    attention = torch.tensor([[[0.5, 0.25], [0.75, 0.0]]])  # rows look at columns
    expected = torch.tensor([[[[0.5, 0.75]], [[2.5, 2.25]]]])
    torch.testing.assert_close(transcam(class_map, attention, (1, 2)), expected)
    identity = torch.eye(2)[None]
    torch.testing.assert_close(transcam(class_map, identity, (1, 2)), class_map.relu())
    assert transcam(-class_map.abs(), attention, (1, 2)).eq(0).all()


def test_transcam_is_float32_in_a_bfloat16_run():
    with torch.autocast("cpu", torch.bfloat16):
        out = tiny_conformer().eval()(torch.rand(1, 3, 32, 32))
    assert (out.class_map_BKhw.dtype, out.maps["transcam"].dtype) == (torch.bfloat16, torch.float32)


def test_transcam_resizes_a_class_map_of_another_grid():
    class_map = torch.tensor([[[[0.0, 2.0, 4.0, 6.0]]]])
    torch.testing.assert_close(transcam(class_map, torch.eye(2)[None], (1, 2)), torch.tensor([[[[1.0, 5.0]]]]))


def test_attention_is_averaged_over_heads_and_layers_without_the_class_token():
    mean = AttentionMean()
    with pytest.raises(ValueError, match="no attention was added"):
        mean.result()
    nothing = torch.zeros(1, 2, 3, 4)  # two heads, a class token and two patches, 4 channels
    mean.add(nothing, nothing)  # uniform: 1/3 each
    torch.testing.assert_close(mean.result(), torch.full((1, 2, 2), 1 / 3))
    q, k = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4)
    q[:, 1] = 100 * torch.eye(3, 4)
    k[:, 1] = torch.eye(3, 4).roll(1, dims=0)  # the second head sees the next token alone, the last sees the first
    mean.add(q, k)  # over heads: 1/6, and 1/6 + 1/2 from the first patch to the second
    expected = torch.tensor([[[1 / 4, 1 / 2], [1 / 4, 1 / 4]]])
    torch.testing.assert_close(mean.result(), expected)


def test_a_block_is_the_pre_norm_block_of_timm():
    theirs = timm_vit.Block(16, 2, 3.0, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6)).eval()
    ours = Block(16, 2, 3.0, 0.1).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(ours(x, None), theirs(x))


def test_the_refined_map_uses_the_attention_of_all_blocks():
    network = tiny_conformer().eval()
    seen = []

    def keep(module, inputs, qkv):
        q, k, _ = qkv.unflatten(2, (3, 2, 8)).unbind(2)  # 2 heads of 8 channels
        seen.append(torch.einsum("bind,bjnd->bnij", q, k).div(8**0.5).softmax(-1).mean(1)[:, 1:, 1:])

    for name, module in network.named_modules():
        if name.endswith("attn.qkv"):
            module.register_forward_hook(keep)
            nn.init.normal_(module.weight, std=1.0)  # attention far from uniform
    nn.init.normal_(network.head.weight)  # a class map of both signs
    out = network(torch.rand(2, 3, 48, 32))
    assert len(seen) == 6 and out.maps["transcam"].max() > 0.01
    expected = transcam(out.class_map_BKhw, torch.stack(seen).mean(0), (3, 2))
    torch.testing.assert_close(out.maps["transcam"], expected)
    assert not out.maps["transcam"].requires_grad


def test_training_computes_no_attention_matrix():
    assert tiny_conformer().train()(torch.rand(2, 3, 32, 32)).maps == {}


def test_blocks_couple_both_ways_and_the_class_token_is_added_to_itself():
    class Keep(nn.Module):
        def forward(self, tokens, attention):
            self.tokens = tokens
            return tokens

    keep = Keep()
    block = ConvTransBlock(16, 16, keep, embed_dim=8, coupling=2, stride=1, last=False).eval()
    x, tokens = torch.rand(1, 16, 4, 4), torch.rand(1, 5, 8)
    out, tokens_out = block(x, tokens, None)
    torch.testing.assert_close(keep.tokens[:, 0], 2 * tokens[:, 0])
    middle = block.cnn_block(x)[1]
    projected = block.squeeze_block.conv_project(middle)
    pooled = torch.stack([projected[..., y : y + 2, z : z + 2].mean(dim=(2, 3)) for y in (0, 2) for z in (0, 2)], 1)
    expected = tokens[:, 1:] + F.gelu(F.layer_norm(pooled, (8,), eps=1e-6))
    torch.testing.assert_close(tokens_out[:, 1:], expected)
    up = block.expand_block(tokens_out[:, 1:], (4, 4))
    torch.testing.assert_close(up[0, :, ::2, ::2], up[0, :, 1::2, 1::2])
    assert not torch.allclose(out, block.fusion_block(block.cnn_block(x)[0])[0])  # the tokens reach the map


def test_grad_cam_of_the_last_block_is_the_class_map_without_its_bias():
    network = tiny_conformer().eval()
    nn.init.constant_(network.head.bias, 0.5)
    image, seen = torch.rand(2, 3, 32, 48), []
    network.grad_cam_layer(-1).register_forward_hook(lambda module, inputs, output: seen.append(output))
    out = network(image)
    gradient = torch.autograd.grad(out.cls_logits_BK.sum(), seen)[0]
    activation_BDhw, gradient_BDhw = (network.as_map(x, image) for x in (seen[0], gradient))
    raw_Bhw = (gradient_BDhw.mean(dim=(2, 3), keepdim=True) * activation_BDhw).sum(dim=1)
    torch.testing.assert_close(raw_Bhw, (out.class_map_BKhw[:, 0] - 0.5) / 6)  # alpha = W / (2 * 3 positions)
    blocks = network.backbone
    assert network.grad_cam_layer(0) is blocks.conv_1.act3
    assert network.grad_cam_layer(-2) is network.grad_cam_layer(4) is blocks.conv_trans_5.fusion_block.act3


def test_weights_load_strictly_without_the_published_classifiers(tmp_path):
    donor = tiny_conformer().backbone.state_dict()
    heads = {"conv_cls_head.weight": torch.rand(9, 256), "trans_cls_head.bias": torch.rand(9)}
    torch.save({"model": {**donor, **heads}}, tmp_path / "w.pth")
    loaded = tiny_conformer(num_classes=3, weights=str(tmp_path / "w.pth")).backbone.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in donor.items())
    with pytest.raises(ValueError, match=r"w\.pth: these weights belong to another network.*names missing"):
        tiny_conformer(depth=9, weights=str(tmp_path / "w.pth"))


def test_names_are_those_of_the_published_checkpoints():
    names = {name for name, _ in tiny_conformer().backbone.named_parameters()}
    assert {
        "cls_token",
        "conv1.weight",
        "bn1.weight",
        "trans_patch_conv.bias",
        "conv_1.residual_bn.weight",
        "trans_1.attn.qkv.bias",
        "conv_trans_2.cnn_block.conv2.weight",
        "conv_trans_2.squeeze_block.conv_project.weight",
        "conv_trans_2.squeeze_block.ln.weight",
        "conv_trans_3.expand_block.bn.bias",
        "conv_trans_4.trans_block.mlp.fc1.weight",
        "conv_trans_6.fusion_block.residual_conv.weight",
        "trans_norm.weight",
    } <= names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 8}, "model.patch_size is 8; wanted a multiple of 16"),
        ({"depth": 4}, "model.depth is 4; wanted a multiple of 3"),
        ({"drop_path": 1.7}, r"model.drop_path is 1.7; wanted a rate in \[0, 1\)"),
        ({"embed_dim": 15}, "model.embed_dim is 15; wanted a multiple of 2"),
    ],
)
def test_sizes_that_do_not_fit_are_told(options, message):
    with pytest.raises(ValueError, match=message):
        tiny_conformer(**options)
