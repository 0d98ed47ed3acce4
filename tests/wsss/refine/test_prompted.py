import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from segment_anything import SamPredictor
from support.clips import LOOSE
from support.segmenters import write_sam2, write_sam3, write_sam_in_both

from wsss.models.sam import load_into
from wsss.models.sam_decoder import small_sam
from wsss.refine import prompted as module
from wsss.refine.prompted import (
    boxes_of,
    check_prompted,
    crops,
    cut_off,
    load_prompted,
    prepare,
    prompted_proposals,
)
from wsss.refine.proposals import ProposalOptions, sam_proposals


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """One random SAM, read from its checkpoint by segment-anything and from its folder by transformers."""
    path, folder, _ = write_sam_in_both(tmp_path_factory.mktemp("sam"))
    sam = small_sam(image_size=64, embed_dim=32, depth=2, num_heads=2)
    load_into(sam, path, "vit_b")
    return sam, load_prompted(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    here = tmp_path_factory.mktemp("folders")
    return {"sam2": write_sam2(here / "sam2"), "sam3": write_sam3(here / "sam3")}


def picture(height, width):
    """Blocks of 20 px of random colours."""
    blocks = np.random.default_rng(3).integers(0, 256, (-(-height // 20), -(-width // 20), 3), dtype=np.uint8)
    return np.ascontiguousarray(blocks.repeat(20, 0).repeat(20, 1)[:height, :width])


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((120, 150), {"points_per_side": 3, "box_nms": 1.0}),
        ((150, 97), {"points_per_side": 4, "box_nms": 0.97}),
        ((36, 40), {"points_per_side": 4, "box_nms": 1.0, "crop_layers": 1, "min_area_px": 0}),
        ((120, 150), {"points_per_side": 8, "box_nms": 1.0, "crop_layers": 2, "min_area_px": 0}),
        ((90, 130), {"points_per_side": 3, "box_nms": 1.0, "points_per_batch": 2, "min_area_px": 40}),
    ],
)
def test_one_checkpoint_has_the_same_proposals_by_segment_anything_and_by_transformers(both, size, options):
    """Floats differ in the sixth digit, so a pixel whose logit is about 0 may differ: at most 1 of 1,000."""
    sam, prompted = both
    loose = ProposalOptions(**{**LOOSE, **options})
    want, got = sam_proposals(sam, picture(*size), loose), prompted_proposals(prompted, picture(*size), loose)
    assert got.dtype == bool and got.shape == want.shape and len(want) >= 1
    assert np.mean(got != want) < 1e-3 and 0 < want.mean() < 1


def test_both_drop_the_masks_that_the_network_rates_low_or_that_are_not_stable(both):
    sam, prompted = both
    image, loose = picture(120, 150), ProposalOptions(**{**LOOSE, "box_nms": 1.0, "points_per_side": 4})
    whole = len(prompted_proposals(prompted, image, loose))
    for options in (replace(loose, pred_iou=0.2), replace(loose, stability=0.8)):
        want, got = sam_proposals(sam, image, options), prompted_proposals(prompted, image, options)
        assert len(got) == len(want) and 0 < len(want) < whole, options


def test_both_see_the_same_image(both):
    sam, prompted = both
    predictor = SamPredictor(sam)
    predictor.set_image(picture(90, 131))
    image, inside = prepare(prompted, picture(90, 131))
    assert inside == predictor.input_size == (44, 64) and not image[:, :, 44:].any()
    torch.testing.assert_close(prompted.model.get_image_embeddings(image), predictor.features, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("kind", "side"), [("sam2", 128), ("sam3", 112)])
def test_points_of_sam_2_and_3_lie_on_the_whole_of_a_wide_image(folders, kind, side, monkeypatch):
    """They squash an image, so the grid spans their square, whatever the aspect."""
    prompted, seen = load_prompted(folders[kind]), []
    forward = prompted.model.forward
    monkeypatch.setattr(
        prompted.model, "forward", lambda **given: seen.append(given["input_points"]) or forward(**given)
    )
    options = ProposalOptions(**{**LOOSE, "box_nms": 1.0, "min_area_px": 0})
    masks = prompted_proposals(prompted, picture(40, 120), options)
    assert masks.shape == (12, 40, 120) and masks.any()
    assert seen[0].shape == (1, 4, 1, 2)
    assert seen[0][0, :, 0].tolist() == [[side * x, side * y] for y in (0.25, 0.75) for x in (0.25, 0.75)]
    white = prepare(prompted, np.full((5, 9, 3), 255, np.uint8))[0]
    assert white.shape == (1, 3, side, side)
    assert white[0, 0].unique().tolist() == pytest.approx([1.0 if kind == "sam3" else (1 - 0.485) / 0.229])


@pytest.mark.parametrize("size", [(1, 400), (400, 1), (1, 1)])
def test_thin_pictures_and_crops_without_a_pixel_have_proposals_of_the_images_size(both, size):
    options = ProposalOptions(**{**LOOSE, "points_per_side": 4, "crop_layers": 2})
    masks = prompted_proposals(both[1], picture(*size), options)
    assert masks.dtype == bool and masks.shape[1:] == size
    none = prompted_proposals(both[1], picture(*size), replace(options, pred_iou=1e9))
    assert none.shape == (0, *size)


def test_boxes_are_of_the_first_and_last_pixels_and_are_cut_off_near_an_inner_edge_of_their_crop():
    masks = torch.zeros(2, 5, 6, dtype=torch.bool)
    masks[0, 1:3, 2:5] = True
    assert boxes_of(masks).tolist() == [[2, 1, 4, 2], [0, 0, 0, 0]]
    boxes = torch.tensor([[150, 150, 250, 250], [120, 150, 250, 250], [150, 150, 250, 280], [79, 150, 250, 250]])
    assert cut_off(boxes, (100, 100, 300, 300), 1000, 1000).tolist() == [False, True, True, False]
    assert cut_off(boxes, (100, 100, 300, 300), 300, 300).tolist() == [False, True, False, False]


def test_crops_overlap_and_cover_the_image():
    boxes = [box for layer, box in crops(60, 90, 1) if layer == 1]
    assert boxes == [(0, 0, 55, 40), (0, 20, 55, 60), (35, 0, 90, 40), (35, 20, 90, 60)]


def test_a_folder_says_which_files_are_wanted_and_what_was_found(folders, tmp_path):
    with pytest.raises(ValueError, match=r"config.json, model.safetensors missing \(found: no such folder\)"):
        load_prompted(tmp_path / "nowhere")
    (tmp_path / "pytorch_model.bin").touch()
    (tmp_path / "config.json").write_bytes((folders["sam2"] / "config.json").read_bytes())
    with pytest.raises(
        ValueError, match=r": model.safetensors missing \(found: config.json, pytorch_model.bin\); put "
    ):
        check_prompted(tmp_path)
    state = load_file(folders["sam2"] / "model.safetensors")
    state.pop("mask_decoder.iou_token.weight")
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"another network than config.json describes: 1 missing keys \['mask_decoder.iou_"
    ):
        load_prompted(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    with pytest.raises(ValueError, match="model_type is 'resnet'; wanted a SAM, SAM 2 or SAM 3, one of sam, sam2"):
        load_prompted(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config.json: names no model_type \(TypeError"):
        load_prompted(tmp_path)


def test_a_transformers_that_is_too_old_is_told(folders, monkeypatch):
    monkeypatch.setitem(module.KINDS, "sam2", "Sam99Model")
    with pytest.raises(ValueError, match=r"transformers 5\..* has no Sam99Model; pip install -U"):
        load_prompted(folders["sam2"])
