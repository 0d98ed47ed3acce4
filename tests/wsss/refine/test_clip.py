import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.clips import write_tiny_clip
from timm.data.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from wsss.models.clip import (
    SCENE_NEGATIVES,
    SMOKE_NEGATIVES,
    SMOKE_PROMPTS,
    TEMPLATES,
    Clip,
    check_folder,
    encode_prompts,
    load_clip,
)
from wsss.models.pretrained import CLIP_TOKENS, WEIGHTS
from wsss.refine.clip import CLIP_MEAN, CLIP_STD, clip_maps, fit, patch_embeddings

FILES = (*WEIGHTS, *CLIP_TOKENS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(folder) -> Clip:
    return load_clip(folder)


def picture(height=20, width=30, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_clip_in_the_publishers_format_is_loaded_from_its_folder(folder, clip):
    assert set(FILES) <= {path.name for path in folder.iterdir()}
    saved = load_file(folder / "model.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in clip.model.named_parameters())
    assert not clip.model.training and clip.patch_size == 4
    ids = clip.tokenizer("Smog")["input_ids"]
    vocabulary = json.loads((folder / "vocab.json").read_text())
    assert ids == [vocabulary[token] for token in ("<|startoftext|>", "sm", "o", "g</w>", "<|endoftext|>")]


def test_a_folder_that_lacks_a_file_says_which_and_where_from(folder, tmp_path):
    with pytest.raises(
        ValueError, match=r"config.json, model.safetensors, vocab.json, merges.txt missing .*; put .*openai"
    ):
        load_clip(tmp_path / "nowhere")
    for name in FILES[:3]:
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(ValueError, match=r": merges.txt missing"):
        check_folder(tmp_path)


def test_weights_that_do_not_fit_are_refused_and_not_filled_up(folder, tmp_path):
    for name in FILES:
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    whole = load_file(folder / "model.safetensors")
    part = {name: value for name, value in whole.items() if name != "visual_projection.weight"}
    save_file(part, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"another network than config.json describes: 1 missing keys \['visual_projection"
    ):
        load_clip(tmp_path)
    (tmp_path / "model.safetensors").write_text("no weights")
    with pytest.raises(ValueError, match="transformers cannot read this as a CLIP"):
        load_clip(tmp_path)


def test_a_prompts_embedding_is_the_unit_mean_of_clips_own_text_embeddings(clip):
    prompts = encode_prompts(clip, [["smoke"]], ["sky"])
    with torch.no_grad():
        tokens = clip.tokenizer([t.format("sky") for t in TEMPLATES], padding=True, return_tensors="pt")
        images = torch.zeros(1, 3, 16, 16)
        own = clip.model(**tokens, pixel_values=images).text_embeds  # unit vectors
    mean = own.mean(0)
    torch.testing.assert_close(prompts.embedding_PE[1], mean / mean.norm(), atol=1e-5, rtol=1e-5)
    assert prompts.class_of_PK.tolist() == [[1.0], [0.0]]


def test_prompts_belong_to_their_classes(clip):
    prompts = encode_prompts(clip, [["cat", "kitten"], ["dog"]], ["sky"])
    assert prompts.class_of_PK.tolist() == [[1, 0], [1, 0], [0, 1], [0, 0]]
    torch.testing.assert_close(prompts.embedding_PE.norm(dim=1), torch.ones(4))


@pytest.mark.parametrize(("positive", "negative"), [([["smoke"]], []), ([["smoke"], []], ["sky"])])
def test_prompts_that_cannot_make_a_map_are_refused(clip, positive, negative):
    with pytest.raises(ValueError, match="wanted at least one per class, and two or more in all"):
        encode_prompts(clip, positive, negative)


def test_a_prompt_longer_than_clip_reads_is_refused_and_not_cut(clip):
    with pytest.raises(ValueError, match=r"has \d+ tokens, but CLIP reads at most 77; shorten it"):
        encode_prompts(clip, [["very " * 30]], ["sky"])


def test_images_are_normalised_with_clips_own_mean(clip):
    white = np.full((9, 13, 3), 255, dtype=np.uint8)
    square = fit(clip, [white, white[:, :5]], None)
    assert square.shape == (2, 3, 16, 16)
    want = (1 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    torch.testing.assert_close(square, want.view(3, 1, 1).expand(2, 3, 16, 16), atol=1e-5, rtol=1e-5)
    assert (CLIP_MEAN, CLIP_STD) == (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
    white[:, 5:] = 0  # an edge, at which cubics would leave [0, 1]
    seen = fit(clip, [white], None)[0] * torch.tensor(CLIP_STD)[:, None, None] + torch.tensor(CLIP_MEAN)[:, None, None]
    assert seen.min().item() == pytest.approx(0, abs=1e-6) and seen.max().item() == pytest.approx(1, abs=1e-6)
    noise = np.random.default_rng(0).integers(0, 256, (61, 47, 3)).astype(np.uint8)
    square = np.asarray(Image.fromarray(noise).resize((16, 16), Image.Resampling.BICUBIC)) / 255  # as CLIP's own does
    seen = fit(clip, [noise], None)[0] * torch.tensor(CLIP_STD)[:, None, None] + torch.tensor(CLIP_MEAN)[:, None, None]
    assert np.abs(seen.permute(1, 2, 0).numpy() - square).max() < 2 / 255
    with pytest.raises(ValueError, match="size is 30; wanted a multiple of 4"):
        fit(clip, [white], 30)


def test_patches_are_clips_last_block_with_every_token_attending_to_itself(clip):
    """The model's own last block, run on one token at a time: its attention is then the identity."""
    image = fit(clip, [picture()], None)
    vision = clip.model.vision_model
    with torch.no_grad():
        hidden = vision.pre_layrnorm(vision.embeddings(image))
        hidden = vision.encoder.layers[0](hidden, None)
        alone = vision.encoder.layers[1](hidden.transpose(0, 1), None).transpose(0, 1)  # each token a batch entry
        own = clip.model.visual_projection(vision.post_layernorm(alone[0, 1:]))
    got = patch_embeddings(clip, image)
    assert got.shape == (1, 4, 4, 8)
    torch.testing.assert_close(got[0].flatten(0, 1), own / own.norm(dim=1, keepdim=True), atol=1e-5, rtol=1e-4)


def test_a_map_is_the_probability_mass_of_the_positive_prompts_by_hand(clip):
    positive, negative = [["smoke", "haze"], ["fire"]], ["sky", "tree"]
    prompts = encode_prompts(clip, positive, negative)
    got = clip_maps(clip, [picture()], prompts)
    patch = patch_embeddings(clip, fit(clip, [picture()], None))[0, 2, 1]
    scale = clip.model.logit_scale.exp().item()
    weights = [np.exp(scale * float(patch @ text)) for text in prompts.embedding_PE]
    assert got.shape == (1, 2, 4, 4)
    assert got[0, 0, 2, 1].item() == pytest.approx((weights[0] + weights[1]) / sum(weights), abs=1e-5)
    assert got[0, 1, 2, 1].item() == pytest.approx(weights[2] / sum(weights), abs=1e-5)


def test_maps_do_not_depend_on_the_batch_and_follow_the_size(clip):
    prompts = encode_prompts(clip, [SMOKE_PROMPTS], SMOKE_NEGATIVES)
    images = [picture(20, 30), picture(40, 16, seed=1)]
    together = clip_maps(clip, images, prompts, size=24)
    assert together.shape == (2, 1, 6, 6) and together.min() >= 0 and together.max() <= 1
    alone = torch.cat([clip_maps(clip, [image], prompts, size=24) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    assert together.std() > 0


def test_default_prompts_are_several_and_different():
    for prompts in (SMOKE_PROMPTS, SMOKE_NEGATIVES, SCENE_NEGATIVES):
        assert len(prompts) == len(set(prompts)) >= 4
    assert not set(SMOKE_PROMPTS) & set(SMOKE_NEGATIVES)
