"""The paths that synthetic scenes cannot stand for, each on a real file: SAM, CLIP, Conformer, whole frames, video."""

import numpy as np
import pytest
import torch
from PIL import Image
from support.clips import write_tiny_clip

from launcher.config.sections import CamConfig
from launcher.jobs.infer import cams_of
from shards.sources.video import frame_count, read_frames
from wsss.methods.classify import Classify
from wsss.models import MODELS
from wsss.models.clip import SMOKE_NEGATIVES, SMOKE_PROMPTS, encode_prompts, load_clip
from wsss.models.sam_decoder import small_sam
from wsss.refine.aid import clip_aid
from wsss.refine.clip import clip_maps
from wsss.refine.proposals import ProposalOptions, sam_proposals
from wsss.refine.sam import sam_enhance

pytestmark = pytest.mark.real_data


@pytest.fixture
def frame(real_data):
    """(H, W, 3) uint8, the largest IJmond frame there is."""
    paths = [path for path in (real_data / "ijmond_extra/images").iterdir() if path.suffix in (".jpg", ".png")]
    largest = max(paths, key=lambda path: np.prod(Image.open(path).size))
    return np.asarray(Image.open(largest).convert("RGB"))


def as_batch(image_HW3):
    return torch.from_numpy(image_HW3.copy()).permute(2, 0, 1)[None].float() / 255


def test_sam_proposes_masks_of_a_real_frame_and_they_refine_its_scores(frame):
    sam = small_sam(image_size=128, embed_dim=16, depth=1, num_heads=2)
    masks = sam_proposals(sam, frame, ProposalOptions(points_per_side=3, pred_iou=-1e9, stability=0.0))
    assert masks.dtype == bool and masks.shape[1:] == frame.shape[:2]
    scores = np.zeros((1, *frame.shape[:2]), dtype=np.float32)
    scores[0, :100, :100] = 1
    assert set(np.unique(sam_enhance(frame, scores, masks))) <= {0.0, 1.0}


def test_clip_gives_maps_of_a_real_frame_that_aid_its_scores(frame, tmp_path):
    clip = load_clip(write_tiny_clip(tmp_path))
    prompts = encode_prompts(clip, [SMOKE_PROMPTS], SMOKE_NEGATIVES)
    maps = clip_maps(clip, [frame], prompts, size=32)[0].numpy()
    assert 0 < maps.min() <= maps.max() < 1
    aided = clip_aid(frame, np.ones((1, *frame.shape[:2]), dtype=np.float32), maps)
    assert aided.shape == (1, *frame.shape[:2]) and 0 <= aided.min() <= aided.max() <= 1


def test_a_conformer_sees_a_real_frame_and_spreads_its_class_map(frame):
    network = MODELS["conformer"](1, embed_dim=48, depth=3, num_heads=2, channel_ratio=1)
    cams, probs = cams_of(Classify(network), as_batch(frame), CamConfig(kinds=("transcam", "class_map")))
    height, width = frame.shape[:2]
    assert cams["transcam"].shape == (1, 1, round(height / 16), round(width / 16)) and 0 < probs.item() < 1


def test_a_real_frame_is_seen_whole_through_windows(frame):
    network = MODELS["vit"](1, timm_name="deit_tiny_patch16_224", timm_options={"depth": 2})
    cam = CamConfig(kinds=("grad", "class_map"), window_px=224, step_px=112)
    cams, _ = cams_of(Classify(network), as_batch(frame), cam)
    height, width = frame.shape[:2]
    for of_frame in cams.values():
        assert of_frame.shape == (1, 1, round(height / 16), round(width / 16))
        assert of_frame.max() == pytest.approx(1, abs=1e-4)


def test_a_whole_frame_of_full_size_is_seen_through_windows_and_is_as_large(frame):
    large = np.asarray(Image.fromarray(frame).resize((1920, 1080)))
    network = MODELS["vit"](
        1, timm_name="vit_tiny_patch16_224", timm_options={"embed_dim": 32, "depth": 1, "num_heads": 2}
    )
    cams, _ = cams_of(Classify(network), as_batch(large), CamConfig(kinds=("class_map",), window_px=512))
    assert cams["class_map"].shape == (1, 1, 68, 120)  # 1080 px are brought to 68 cells of 16


def test_the_real_clip_decodes(real_data):
    (path,) = (real_data / "ijmond_extra").glob("*.mp4")
    first, last = read_frames(path, [0, frame_count(path) - 1])
    assert first.shape == last.shape and first.dtype == np.uint8 and (first != last).any()
