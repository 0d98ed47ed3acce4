import numpy as np
import pytest
import torch
from support.clips import write_tiny_siglip

from wsss.models.clip import TEMPLATES, check_folder, encode_prompts, load_clip
from wsss.refine.clip import clip_maps, fit, patch_embeddings


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_siglip(tmp_path_factory.mktemp("siglip"))


@pytest.fixture(scope="module")
def siglip(folder):
    return load_clip(folder)


def picture(height=20, width=30, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_prompts_embedding_is_the_unit_mean_of_siglips_own(siglip):
    prompts = encode_prompts(siglip, [["smoke"]], ["Sky"])
    texts = [template.format("Sky").lower() for template in TEMPLATES]  # SigLIP 2 was trained on small letters
    tokens = siglip.tokenizer(texts, padding="max_length", max_length=64, return_tensors="pt")
    with torch.no_grad():
        own = siglip.model(input_ids=tokens["input_ids"], pixel_values=torch.zeros(1, 3, 16, 16)).text_embeds
    mean = own.mean(0)
    torch.testing.assert_close(prompts.embedding_PE[1], mean / mean.norm(), atol=1e-5, rtol=1e-5)


def test_a_patch_is_pooled_alone_so_that_only_its_own_value_counts(siglip):
    """Value and output projection, then what follows the pooling: an attention over one token is that token's value."""
    image = fit(siglip, [picture()], None)
    vision, head = siglip.model.vision_model, siglip.model.vision_model.head
    with torch.no_grad():
        token = vision(pixel_values=image).last_hidden_state[0, 6]
        *_, value = head.attention.in_proj_weight.chunk(3)
        out = head.attention.out_proj(value @ token + head.attention.in_proj_bias.chunk(3)[2])
        out = out + head.mlp(head.layernorm(out))
    got = patch_embeddings(siglip, image)
    assert got.shape == (1, 4, 4, 16)
    torch.testing.assert_close(got[0, 1, 2], out / out.norm(), atol=1e-5, rtol=1e-4)


def test_a_map_is_the_sigmoid_of_the_best_prompt_by_hand_whatever_the_negative_ones(siglip):
    prompts = encode_prompts(siglip, [["smoke", "haze"], ["fire"]], ["sky"])
    got = clip_maps(siglip, [picture()], prompts)
    patch = patch_embeddings(siglip, fit(siglip, [picture()], None))[0, 2, 1]
    scale, bias = siglip.model.logit_scale.exp().item(), siglip.model.logit_bias.item()
    said = [1 / (1 + np.exp(-(scale * float(patch @ text) + bias))) for text in prompts.embedding_PE]
    assert got.shape == (1, 2, 4, 4)
    assert got[0, 0, 2, 1].item() == pytest.approx(max(said[:2]), rel=1e-4)
    assert got[0, 1, 2, 1].item() == pytest.approx(said[2], rel=1e-4)
    beside_a_boat = encode_prompts(siglip, [["smoke", "haze"], ["fire"]], ["a boat"])
    torch.testing.assert_close(clip_maps(siglip, [picture()], beside_a_boat), got)


def test_its_images_lie_between_minus_one_and_one_and_maps_follow_the_size(siglip):
    white = fit(siglip, [np.full((9, 13, 3), 255, np.uint8)], None)
    torch.testing.assert_close(white, torch.ones(1, 3, 16, 16))
    assert clip_maps(siglip, [picture()], encode_prompts(siglip, [["smoke"]], ["sky"]), size=24).shape == (1, 1, 6, 6)


def test_its_folder_has_another_tokenizer_than_clips(folder, tmp_path):
    assert check_folder(folder) == ("config.json", "model.safetensors", "tokenizer.json")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(ValueError, match=r"model.safetensors, tokenizer.json missing \(found: config.json\)"):
        check_folder(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "siglip2"}')  # of any resolution, which reads packed patches
    with pytest.raises(
        ValueError, match=r"model_type is 'siglip2'; wanted .* of a fixed resolution, one of clip, siglip"
    ):
        check_folder(tmp_path)
