from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsss.models.sam import load_sam
from wsss.models.sam_decoder import SamDecoder, build_sam_decoder, set_image_size, small_sam
from wsss.refine import sam as refine_sam
from wsss.refine.proposals import HEADER, ProposalOptions, drop_small_regions, pack, sam_proposals, unpack
from wsss.refine.sam import sam_enhance

TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2}
tiny_sam = partial(small_sam, image_size=64, **TINY)
tiny_decoder = partial(build_sam_decoder, 1, image_size=64, encoder=TINY)


def picture(height=48, width=60):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def row(text):
    """'1100' -> one mask of one row."""
    return np.array([[mark == "1" for mark in text]])


def enhance(scores, proposals, **options):
    scores = np.array(scores, dtype=np.float32).reshape(-1, 1, 8)
    masks = np.stack([row(text) for text in proposals]) if proposals else np.zeros((0, 1, 8), dtype=bool)
    out = sam_enhance(np.zeros((1, 8, 3), dtype=np.uint8), scores, masks, **options)
    assert out.dtype == np.float32 and out.shape == scores.shape
    return ["".join(str(int(value)) for value in map_HW.ravel()) for map_HW in out]


SEED = [0.3, 0.9, 0.29, 0.0, 0.0, 0.0, 0.0, 0.0]  # 11000000: the threshold itself is seed


def test_the_union_of_agreeing_proposals_replaces_the_seed_by_hand():
    # IoU with the seed: 2/3, 1/3, 1/5, 2/5 but too large (5 of 8 pixels)
    proposals = ["11100000", "01100000", "01111000", "11000111"]
    assert enhance(SEED, proposals) == ["11100000"]
    assert enhance(SEED, proposals, strategy="and") == ["11000000"]
    assert enhance(SEED, proposals, strategy="or") == ["11100000"]
    assert enhance(SEED, proposals, min_iou=0.2) == ["11111000"]
    assert enhance(SEED, proposals, max_area=0.625) == ["11100111"]
    assert enhance(SEED, ["01100000"]) == ["01100000"]
    assert enhance(SEED, ["01100000"], strategy="and") == ["01000000"]
    assert enhance(SEED, ["01100000"], strategy="or") == ["11100000"]


def test_a_proposal_at_both_limits_is_valid():
    assert enhance(SEED, ["11110000"], min_iou=0.5, max_area=0.5) == ["11110000"]  # IoU 2/4, area 4/8
    assert enhance(SEED, ["11110000"], min_iou=0.501) == ["11000000"]
    assert enhance(SEED, ["11110000"], max_area=0.499) == ["11000000"]


@pytest.mark.parametrize("strategy", ["copy", "and", "or"])
def test_without_an_agreeing_proposal_the_seed_stays(strategy):
    assert enhance(SEED, [], strategy=strategy) == ["11000000"]
    assert enhance(SEED, ["00000011", "00000000"], strategy=strategy) == ["11000000"]
    assert enhance([0.0] * 8, ["11000000", "00000000"], strategy=strategy) == ["00000000"]


def test_each_class_takes_its_own_proposals():
    other = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 0.5]
    assert enhance([SEED, other, [0.0] * 8], ["11100000", "00000111"]) == ["11100000", "00000111", "00000000"]
    assert sam_enhance(picture(1, 8), np.zeros((0, 1, 8), np.float32), row("11000000")[None]).shape == (0, 1, 8)


@given(st.integers(0, 2**32 - 1), st.integers(0, 6), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_and_lies_in_the_seed_and_the_seed_in_or_and_a_slow_loop_agrees(seed, num_masks, num_classes):
    rng = np.random.default_rng(seed)
    scores = rng.random((num_classes, 5, 7)).astype(np.float32)
    masks = rng.random((num_masks, 5, 7)) < rng.random((num_masks, 1, 1))
    out = {how: sam_enhance(picture(5, 7), scores, masks, strategy=how, max_area=0.6) for how in ("and", "copy", "or")}
    seeds = scores >= 0.3
    assert (out["and"] <= seeds).all() and (seeds <= out["or"]).all()
    assert (out["and"] <= out["copy"]).all() and (out["copy"] <= out["or"]).all()
    for k in range(num_classes):
        valid = [m for m in masks if m.sum() <= 21 and (m & seeds[k]).sum() / max((m | seeds[k]).sum(), 1) >= 0.3]
        assert np.array_equal(out["copy"][k], np.any(valid, axis=0) if valid else seeds[k])


def test_large_frames_are_summed_block_by_block(monkeypatch):
    rng = np.random.default_rng(1)
    scores, masks = rng.random((2, 9, 11)).astype(np.float32), rng.random((5, 9, 11)) < 0.45
    whole = sam_enhance(picture(9, 11), scores, masks)
    assert 0 < whole.mean() < 1
    monkeypatch.setattr(refine_sam, "BLOCK", 7)
    assert np.array_equal(sam_enhance(picture(9, 11), scores, masks), whole)


def test_bad_proposals_and_options_are_refused():
    with pytest.raises(ValueError, match=r"proposals are \(1, 1, 7\) bool, scores \(1, 1, 8\)"):
        sam_enhance(picture(1, 8), np.zeros((1, 1, 8), np.float32), np.zeros((1, 1, 7), bool))
    with pytest.raises(ValueError, match="float64"):
        sam_enhance(picture(1, 8), np.zeros((1, 1, 8), np.float32), np.zeros((1, 1, 8)))
    with pytest.raises(ValueError, match="min_iou is 0.0; wanted above 0"):
        enhance(SEED, ["11000000"], min_iou=0.0)


@pytest.mark.parametrize("shape", [(0, 5, 7), (3, 5, 7), (2, 8, 8), (1, 1, 1)])
def test_packed_masks_come_back_as_they_were(shape):
    masks = np.random.default_rng(0).random(shape) < 0.5
    back = unpack(pack(masks))
    assert back.shape == shape and back.dtype == bool and np.array_equal(back, masks)
    assert pack(masks) == pack(masks.copy())


def test_packed_masks_are_small():
    masks = np.zeros((50, 200, 300), dtype=bool)
    masks[:, 20:90, 30:200] = True
    assert len(pack(masks)) < masks.nbytes / 200


@pytest.mark.parametrize("data", [b"", b"SAM1", pack(np.ones((2, 9, 9), bool))[:-4], b"X" * 40])
def test_bytes_that_are_no_masks_are_refused(data):
    with pytest.raises(ValueError, match="write"):
        unpack(data)
    other_shape = HEADER.pack(b"SAM1", 9, 9, 9) + pack(np.ones((2, 9, 9), bool))[HEADER.size :]
    with pytest.raises(ValueError, match=r"shape \[9, 9, 9\] and 21 bytes do not fit"):
        unpack(other_shape)


def drawn(*rows):
    return np.concatenate([row(text) for text in rows])


def test_small_islands_go_and_small_holes_are_filled_by_hand():
    mask = drawn("11110000", "10110001", "11110001", "00000000")
    want = drawn("11110000", "11110000", "11110000", "00000000")
    assert np.array_equal(drop_small_regions(mask, 3), want)
    assert np.array_equal(drop_small_regions(mask, 2), mask | want)  # the island of two stays
    assert np.array_equal(drop_small_regions(mask, 1), mask)
    assert np.array_equal(drop_small_regions(mask, 0), mask)


def test_the_largest_island_stays_and_what_lies_around_is_no_hole():
    mask = drawn("00000000", "01100010", "00000000")
    assert np.array_equal(drop_small_regions(mask, 20), drawn("00000000", "01100000", "00000000"))
    dot = np.zeros((9, 9), dtype=bool)
    dot[4, 4] = True  # its neighbours are few, but they are the edge of a large background
    assert np.array_equal(drop_small_regions(dot, 20), dot)
    full = np.ones((3, 8), dtype=bool)
    assert np.array_equal(drop_small_regions(full, 20), full)
    assert not drop_small_regions(~full, 20).any()
    corner = drawn("01111111", "11111111", "11111111")  # cut off at the image's corner: a hole of one pixel
    assert drop_small_regions(corner, 2).all() and drop_small_regions(corner[::-1, ::-1], 2).all()
    diagonal = drawn("1000", "0100", "0010")  # touching at corners is one region
    assert np.array_equal(drop_small_regions(diagonal, 3), diagonal)


def test_proposals_of_a_random_sam_are_masks_of_the_images_size():
    options = ProposalOptions(points_per_side=3, pred_iou=-1e9, stability=0.0, min_area_px=0)
    masks = sam_proposals(tiny_sam(), picture(), options)
    assert masks.dtype == bool and masks.shape[1:] == (48, 60) and 1 <= len(masks) <= 27
    assert np.array_equal(masks, sam_proposals(tiny_sam_again(), picture(), replace(options, points_per_batch=4)))
    none = sam_proposals(tiny_sam(), picture(), ProposalOptions(points_per_side=2, pred_iou=1e9))
    assert none.shape == (0, 48, 60) and none.dtype == bool
    with pytest.raises(ValueError, match=r"image is \(48, 60, 3\) float64"):
        sam_proposals(tiny_sam(), picture().astype(float), options)


def tiny_sam_again():
    torch.manual_seed(0)
    return tiny_sam()


@pytest.fixture
def tiny_registry(monkeypatch):
    """A tiny network takes the name of the smallest published one; returns a function that builds it."""
    from segment_anything import sam_model_registry

    monkeypatch.setitem(sam_model_registry, "vit_b", lambda checkpoint: tiny_sam())


def test_a_published_checkpoint_is_loaded_strictly(tmp_path, tiny_registry):
    torch.manual_seed(7)
    saved = tiny_sam()
    path = tmp_path / "sam.pth"
    torch.save(saved.state_dict(), path)
    loaded = load_sam(path, "vit_b")
    assert not loaded.training
    assert all(torch.equal(value, saved.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert not torch.equal(load_sam(None, "vit_b").state_dict()["mask_decoder.iou_token.weight"],
                           saved.mask_decoder.iou_token.weight)  # fmt: skip


def test_wrong_weights_say_what_to_do(tmp_path, tiny_registry):
    with pytest.raises(ValueError, match=r"nowhere.pth: SAM weights are missing; download sam_vit_b_01ec64.pth .*PATH"):
        load_sam(tmp_path / "nowhere.pth", "vit_b")
    other = small_sam(image_size=64, embed_dim=16, depth=1, num_heads=2)
    torch.save(other.state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"another network than Sam.*of another shape.*read as SAM vit_b"):
        load_sam(tmp_path / "other.pth", "vit_b")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match="not a weights file that can be loaded safely"):
        load_sam(tmp_path / "text.pth", "vit_b")


def test_the_decoder_gives_sams_own_single_mask_for_the_task_token():
    sam = tiny_sam()
    network = SamDecoder(sam, 1).eval()
    image = torch.rand(2, 3, 64, 64)
    out = network(image)
    assert out.seg_logits_BChw.shape == (2, 2, 16, 16) and out.patches_BDhw.shape == (2, 32, 16, 16)
    for b in range(2):  # the published decoder takes one image at a time
        mask, _ = sam.mask_decoder(
            image_embeddings=sam.image_encoder(sam.preprocess(255 * image[b : b + 1])),
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=network.task_token[None],
            dense_prompt_embeddings=torch.zeros(1, 256, 4, 4),
            multimask_output=False,
        )
        torch.testing.assert_close(out.seg_logits_BChw[b, 1], mask[0, 0], atol=1e-4, rtol=1e-4)
    assert torch.equal(out.class_map_BKhw[:, 0], out.seg_logits_BChw[:, 1])
    assert not out.seg_logits_BChw[:, 0].any()
    assert torch.equal(out.cls_logits_BK[:, 0], out.class_map_BKhw.flatten(1).max(1).values)


def test_every_trained_parameter_gets_a_gradient_and_the_encoder_none():
    network = tiny_decoder()
    network.train()
    assert not network.image_encoder.training and network.transformer.training
    image = torch.rand(2, 3, 64, 64, requires_grad=True)
    out = network(image)
    torch.nn.functional.cross_entropy(out.seg_logits_BChw, torch.randint(0, 2, (2, 16, 16))).backward()
    assert image.grad is None  # nothing is kept for a backward pass through the encoder
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    got = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert trained == got and "task_token" in trained
    assert not any(name.startswith(("image_encoder", "head")) for name in trained)
    assert all(network.get_parameter(name).grad.any() for name in trained if "k_proj.bias" not in name)


def test_a_checkpoint_of_the_decoder_is_whole(tmp_path):
    saved = tiny_decoder().eval()
    torch.manual_seed(5)
    fresh = tiny_decoder().eval()
    image = torch.rand(1, 3, 32, 32)
    assert not torch.equal(fresh(image).class_map_BKhw, saved(image).class_map_BKhw)
    fresh.load_state_dict(saved.state_dict())
    assert torch.equal(fresh(image).class_map_BKhw, saved(image).class_map_BKhw)


@pytest.mark.parametrize(("size", "grid"), [((64, 64), (16, 16)), ((32, 64), (8, 16)), ((100, 70), (16, 12))])
def test_the_map_shows_the_image_and_not_its_padding(size, grid):
    network = tiny_decoder().eval()
    image = torch.rand(1, 3, *size)
    assert network(image).class_map_BKhw.shape[-2:] == grid
    square, _ = network.fit(image)
    assert square.shape == (1, 3, 64, 64)
    assert not square[:, :, 4 * grid[0] :].any() and not square[:, :, :, 4 * grid[1] :].any()


def test_published_weights_serve_another_image_size(tmp_path):
    sam = tiny_sam()
    torch.nn.init.trunc_normal_(sam.image_encoder.pos_embed)
    table = sam.image_encoder.pos_embed.detach().clone()
    set_image_size(sam, 64)
    assert torch.equal(sam.image_encoder.pos_embed, table)
    set_image_size(sam, 128)
    assert sam.image_encoder.pos_embed.shape == (1, 8, 8, 32)
    assert SamDecoder(sam, 1)(torch.rand(1, 3, 50, 50)).class_map_BKhw.shape == (1, 1, 32, 32)
    with pytest.raises(ValueError, match="image_size is 100; wanted a multiple of 16"):
        set_image_size(sam, 100)


def test_the_decoder_starts_from_the_checkpoint(tmp_path):
    torch.manual_seed(3)
    sam = tiny_sam()
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    torch.manual_seed(4)
    network = tiny_decoder(weights=str(tmp_path / "sam.pth"))
    assert torch.equal(network.mask_tokens, sam.mask_decoder.mask_tokens.weight)
    assert torch.equal(network.position_1Dgg, sam.prompt_encoder.get_dense_pe())
    assert torch.equal(network.image_encoder.neck[0].weight, sam.image_encoder.neck[0].weight)
    with pytest.raises(ValueError, match="SAM weights are missing"):
        tiny_decoder(weights=str(tmp_path / "gone.pth"))


def test_the_decoder_is_for_one_class():
    with pytest.raises(ValueError, match="gives one mask, but the data have 20 classes"):
        build_sam_decoder(20, image_size=64, encoder=TINY)


@pytest.mark.parametrize("size", [(64, 64), (1, 400), (400, 1), (1, 1), (5, 500)])
@pytest.mark.parametrize("crop_layers", [0, 2])
@pytest.mark.parametrize("pred_iou", [0.0, 2.0])
def test_thin_pictures_and_crops_without_a_mask_have_proposals_of_the_images_size_maybe_none(
    size, crop_layers, pred_iou
):
    image = np.full((*size, 3), 130, dtype=np.uint8)
    options = ProposalOptions(points_per_side=4, crop_layers=crop_layers, pred_iou=pred_iou, stability=0.0)
    with torch.no_grad():
        masks = sam_proposals(tiny_sam().eval(), image, options)
    assert masks.dtype == bool and masks.shape[1:] == size
    assert len(masks) == 0 or pred_iou < 1


def test_a_grid_without_a_point_for_the_smallest_crops_is_refused():
    with pytest.raises(
        ValueError, match=r"points_per_side is 3, which leaves no point for the crops of layer 2; wanted 4"
    ):
        ProposalOptions(points_per_side=3, crop_layers=2)


def test_a_grid_that_takes_days_an_image_is_refused():
    ProposalOptions(points_per_side=256, crop_layers=5)
    for numbers in ({"points_per_side": 257}, {"points_per_side": 0}, {"crop_layers": 6}, {"crop_layers": -1}):
        with pytest.raises(ValueError, match=r"points_per_side is \d+, crop_layers .*; wanted 1 to 256 .* 0 to 5 "):
            ProposalOptions(**numbers)
