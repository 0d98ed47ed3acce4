import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from support.networks import tiny_cnn, tiny_toco, tiny_vit
from timm.models.vision_transformer import VisionTransformer

from wsss.methods.classify import Classify
from wsss.models.embedding import resize_positions
from wsss.models.vit import ViT, build_vit
from wsss.models.weights import read_state


def golden_vit(arrays, dtype):
    weights = {name.removeprefix("w."): torch.from_numpy(a) for name, a in arrays.items() if name.startswith("w.")}
    backbone = VisionTransformer(
        img_size=224, patch_size=16, embed_dim=48, depth=5, num_heads=3, num_classes=0, global_pool=""
    )
    backbone.load_state_dict(weights, strict=True)
    return ViT(backbone, 1, mean=(0, 0, 0), std=(1, 1, 1)).to(dtype).eval()


@pytest.mark.parametrize("case", ["vit_p0", "vit_p1"])
def test_tokens_equal_the_golden_vectors(golden, case):
    arrays = golden(case)
    for dtype, suffix, tolerance in ((torch.float64, "f64", 1e-9), (torch.float32, "f32", 2e-5)):
        vit = golden_vit(arrays, dtype)
        image = torch.from_numpy(arrays["image"]).to(dtype)
        with torch.no_grad():
            embedded = vit.embed(vit.normalise(image))
            grid, tokens = embedded.grid, vit.backbone.norm(vit.through(embedded))
            patches = vit(image).patches_BDhw
        np.testing.assert_allclose(tokens[:, 0].numpy(), arrays[f"cls_{suffix}"], atol=tolerance)
        np.testing.assert_allclose(tokens[:, 1:].numpy(), arrays[f"patch_{suffix}"], atol=tolerance)
        flat = patches.flatten(2).transpose(1, 2).numpy()
        np.testing.assert_allclose(flat, arrays[f"patch_{suffix}"], atol=tolerance)
        table = resize_positions(vit.backbone.pos_embed[:, 1:], (14, 14), grid)
        expected = torch.from_numpy(arrays["pos_grid_f64"]).flatten(0, 1)
        np.testing.assert_allclose(table[0].detach().numpy(), expected.numpy(), atol=tolerance)


def test_positions_on_their_own_grid_are_the_table_itself():
    table = torch.randn(1, 12, 4)
    assert resize_positions(table, (3, 4), (3, 4)) is table


def test_sides_that_are_no_multiple_of_the_patch_are_cut_down():
    vit = tiny_vit().eval()
    image = torch.rand(1, 3, 39, 25)
    assert vit(image).patches_BDhw.shape == (1, 16, 4, 3)
    torch.testing.assert_close(vit(image).cls_logits_BK, vit(image[..., :32, :24]).cls_logits_BK)


def test_class_map_is_the_classifier_at_every_patch():
    vit = tiny_vit(num_classes=3).eval()
    out = vit(torch.rand(2, 3, 32, 32))
    patch = out.patches_BDhw[1, :, 2, 3]
    expected = vit.head.weight[:, :, 0, 0] @ patch + vit.head.bias
    torch.testing.assert_close(out.class_map_BKhw[1, :, 2, 3], expected)
    assert out.cls_logits_BK.shape == (2, 3)


def test_normalisation_is_that_of_the_weights_and_can_be_chosen():
    deit, augreg = (build_vit(1, timm_name=name) for name in ("deit_tiny_patch16_224", "vit_tiny_patch16_224"))
    assert deit.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert augreg.mean.flatten().tolist() == [0.5] * 3
    chosen = build_vit(1, timm_name="vit_tiny_patch16_224", mean=(0.1, 0.2, 0.3), std=(1, 1, 1))
    assert chosen.normalise(torch.full((1, 3, 1, 1), 0.3)).flatten().tolist() == pytest.approx([0.2, 0.1, 0.0])


@pytest.mark.parametrize(
    ("name", "dim", "heads"), [("vit_small_patch16_224", 384, 6), ("vit_base_patch16_224", 768, 12)]
)
def test_small_and_base_are_the_real_ones(name, dim, heads):
    with torch.device("meta"):
        vit = build_vit(1, timm_name=name)
    assert (vit.feature_dim, vit.backbone.blocks[0].attn.num_heads, len(vit.backbone.blocks)) == (dim, heads, 12)


@pytest.mark.parametrize(
    "options",
    [
        {"class_token": False},
        {"reg_tokens": 2, "no_embed_class": True},
        {"pre_norm": True},
        {"no_embed_class": True},
    ],
)
def test_variants_of_the_plain_vit_equal_timm_on_their_own_grid(options):
    vit = tiny_vit(**options).eval()
    image = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        tokens = vit.backbone.forward_features(vit.normalise(image))
        expected = vit.grid_of(tokens, (4, 4))
        torch.testing.assert_close(vit(image).patches_BDhw, expected)


def test_weights_load_strictly_from_a_file_without_their_classifier(tmp_path):
    donor = timm.create_model("vit_tiny_patch16_224", num_classes=1000, depth=1, embed_dim=48, num_heads=3)
    torch.save(donor.state_dict(), tmp_path / "w.pth")
    save_file(donor.state_dict(), tmp_path / "w.safetensors")
    options = {"depth": 1, "embed_dim": 48, "num_heads": 3}
    for name in ("w.pth", "w.safetensors"):
        vit = build_vit(2, timm_name="vit_tiny_patch16_224", weights=str(tmp_path / name), timm_options=options)
        assert torch.equal(vit.backbone.pos_embed, donor.pos_embed)
    with pytest.raises(ValueError, match=r"w\.pth: these weights belong to another network.*12 names missing"):
        build_vit(
            2, timm_name="vit_tiny_patch16_224", weights=str(tmp_path / "w.pth"), timm_options={**options, "depth": 2}
        )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([torch.zeros(2)], "holds a list"),
        ({"state_dict": {"epoch": 3}}, "holds int 'epoch'"),
        ({0: torch.zeros(2)}, "holds Tensor 0"),
        ({"model": "vit", "weight": torch.zeros(2)}, "holds str 'model'"),
    ],
)
def test_a_file_that_holds_something_else_than_weights_is_told(tmp_path, content, said):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=rf"w\.pth: {said}; wanted a dict of tensors by their names"):
        read_state(tmp_path / "w.pth")


def test_weights_are_found_where_a_training_has_put_them(tmp_path):
    weights = {"weight": torch.ones(2)}
    model = {"model": torch.zeros(2), **weights}  # here a weight's name
    for content in (weights, {"state_dict": weights}, {"epoch": 3, "model": weights}, {"state_dict": model}):
        torch.save(content, tmp_path / "w.pth")
        assert read_state(tmp_path / "w.pth")["weight"].tolist() == [1, 1]


def test_unusable_weights_and_names_are_told(tmp_path):
    (tmp_path / "junk.pth").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"junk\.pth: not a weights file"):
        build_vit(1, timm_name="deit_tiny_patch16_224", weights=str(tmp_path / "junk.pth"))
    with pytest.raises(ValueError, match=r"gone\.pth: weights file is missing"):
        build_vit(1, timm_name="deit_tiny_patch16_224", weights=str(tmp_path / "gone.pth"))
    with pytest.raises(ValueError, match="timm has no 'deit_tiny_patch16_223'; near: deit_tiny_patch16_224"):
        build_vit(1, timm_name="deit_tiny_patch16_223")
    with pytest.raises(ValueError, match="'resnet10t' is a ResNet, not a ViT of one grid"):
        build_vit(1, timm_name="resnet10t")


@pytest.mark.real_data
def test_real_deit_weights_load(real_data):
    vit = build_vit(
        1, timm_name="deit_tiny_patch16_224", weights=str(real_data / "weights/deit_tiny_patch16_224_lnq.pth")
    )
    assert vit.backbone.pos_embed.abs().max() > 0.1


@pytest.mark.parametrize("timm_name", [None, "vit_small_patch16_dinov3", "eva02_tiny_patch14_224"])
def test_the_attention_beside_the_last_block_is_the_one_inside_it(timm_name):
    vit = build_vit(1, timm_name=timm_name, timm_options=SMALL) if timm_name else tiny_vit()
    vit = vit.eval()
    side, prefix = 4 * vit.stride, vit.backbone.num_prefix_tokens
    image = torch.rand(2, 3, side, side)
    block = vit.backbone.blocks[-1]
    with torch.no_grad():  # larger than at the start, so that tokens attend to some more than to others
        for parameter in block.attn.parameters():
            parameter.normal_()
    block.attn.fused_attn = False
    inside = []
    handle = block.attn.attn_drop.register_forward_hook(lambda module, inputs, output: inside.append(output))
    out, attention = vit.with_attention(image)
    handle.remove()
    expected = inside[0].mean(dim=1)[:, 0, prefix:].unflatten(1, (4, 4))
    assert expected.std() > 1e-3
    torch.testing.assert_close(attention, expected)
    torch.testing.assert_close(out.cls_logits_BK, vit(image).cls_logits_BK)


def test_the_dark_channel_prior_trains_the_attention():
    vit = tiny_vit()
    batch = {"image": torch.rand(2, 3, 32, 32), "image_label": torch.ones(2, 1)}
    losses = Classify(vit, dark_weight=0.5)(batch, 0)
    torch.testing.assert_close(losses["loss"], losses["cls_loss"] + 0.5 * losses["dark_loss"])
    (gradient,) = torch.autograd.grad(losses["dark_loss"], vit.backbone.blocks[-1].attn.qkv.weight)
    assert gradient.abs().sum() > 0
    for other in (tiny_cnn(), tiny_toco()):
        with pytest.raises(
            ValueError, match="unless the model is a vit: training does not read the attention of a (CNN|ToCoNet)"
        ):
            Classify(other, dark_weight=0.5)
    without = tiny_vit(class_token=False, global_pool="avg")
    Classify(without)
    with pytest.raises(ValueError, match="no class token, whose attention is needed"):
        Classify(without, dark_weight=0.5)


SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 2}
ROTARY = {
    "DINOv3": ("vit_small_patch16_dinov3", SMALL),
    "EVA-02, with a table besides": ("eva02_tiny_patch14_224", {**SMALL, "img_size": 56}),
    "PE, with a table besides": ("vit_pe_core_tiny_patch16_384", {**SMALL, "img_size": 64}),
    "rotations of each block": ("vit_small_patch16_rope_mixed_224", SMALL),
    "no rotation at all": ("eva_giant_patch14_224", {**SMALL, "img_size": 56, "mlp_ratio": 2}),
}


@pytest.mark.parametrize("name", ROTARY)
def test_the_features_of_a_rotary_vit_are_those_of_timm_on_any_grid(name):
    timm_name, options = ROTARY[name]
    vit = build_vit(2, timm_name=timm_name, timm_options=options).eval()
    theirs = timm.create_model(timm_name, num_classes=0, global_pool="", dynamic_img_size=True, **options).eval()
    theirs.load_state_dict(vit.backbone.state_dict())
    for rows, columns in ((4, 4), (3, 5)):
        image = torch.rand(2, 3, rows * vit.stride, columns * vit.stride)
        with torch.no_grad():
            expected = theirs.forward_features(vit.normalise(image))[:, theirs.num_prefix_tokens :]
            ragged = torch.nn.functional.pad(image, (0, 5, 0, 3))
            for seen in (image, ragged):
                assert torch.equal(vit(seen).patches_BDhw.flatten(2).transpose(1, 2), expected)


@pytest.mark.parametrize("name", ["plain", "DINOv3", "rotations of each block"])
def test_recomputed_blocks_give_the_same_gradient(name):
    timm_name, options = ROTARY.get(name, ("vit_tiny_patch16_224", {**SMALL, "img_size": 64}))
    vit = build_vit(2, timm_name=timm_name, timm_options=options)
    image, gradients, kept = torch.rand(2, 3, 64, 64), [], []
    for checkpointing in (False, True):
        vit.checkpointing = checkpointing
        vit.zero_grad()
        numbers: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, n=numbers: n.append(x.numel()) or x, lambda x: x):
            loss = vit(image).cls_logits_BK.square().sum()
        loss.backward()
        gradients.append([p.grad.clone() for p in vit.parameters() if p.grad is not None])
        kept.append(sum(numbers))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True)) and kept[1] < 0.5 * kept[0]
