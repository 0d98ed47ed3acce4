import numpy as np
import pytest
import torch
from support.segmenters import write_sam3

from wsss.refine import REFINERS
from wsss.refine.aid import clip_aid
from wsss.refine.clip import squash
from wsss.refine.concept import check_concept, concept_maps, encode_concepts, load_concept


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_sam3(tmp_path_factory.mktemp("sam3") / "sam3")


@pytest.fixture(scope="module")
def concept(folder):
    return load_concept(folder)


def picture(height=40, width=60, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def alone(concept, image, text):
    """What SAM 3 itself says of one image and one text: (h, w)."""
    tokens = concept.tokenizer(text, padding="max_length", max_length=32, return_tensors="pt")
    square = 2 * squash([image], concept.side, "bilinear", torch.device("cpu")) - 1
    with torch.no_grad():
        out = concept.model(pixel_values=square, **tokens)
    return out.semantic_seg[0, 0].sigmoid() * out.presence_logits[0].sigmoid()


def test_a_map_is_where_sam_3_finds_the_words_times_whether_it_is_there(concept):
    images = [picture(), picture(30, 70, seed=1)]
    got = concept_maps(concept, images, encode_concepts(concept, [["smoke"], ["sky"]]))
    assert got.shape == (2, 2, 32, 32) and got.dtype == torch.float32 and 0 <= got.min() <= got.max() <= 1
    for number, image in enumerate(images):
        for k, text in enumerate(("smoke", "sky")):
            torch.testing.assert_close(got[number, k], alone(concept, image, text), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(got[0, 0], got[0, 1], atol=1e-4)


def test_of_several_wordings_of_a_class_the_one_that_is_found_best_counts(concept):
    got = concept_maps(concept, [picture()], encode_concepts(concept, [["sky"], ["smog", "a plume"]]))
    want = torch.maximum(alone(concept, picture(), "smog"), alone(concept, picture(), "a plume"))
    torch.testing.assert_close(got[0, 1], want, atol=1e-5, rtol=1e-4)


def test_maps_are_stored_at_a_smaller_grid_by_their_mean(concept):
    prompts = encode_concepts(concept, [["smoke"]])
    whole = concept_maps(concept, [picture()], prompts)
    small = concept_maps(concept, [picture()], prompts, map_size=8)
    torch.testing.assert_close(small, whole.unflatten(-1, (8, 4)).unflatten(-3, (8, 4)).mean((-1, -3)))
    with pytest.raises(ValueError, match="map_size is 33; wanted 1 to 32"):
        concept_maps(concept, [picture()], prompts, map_size=33)


def test_its_maps_refine_scores_as_clips_do():
    assert REFINERS["concept"] is clip_aid
    scores = np.full((1, 4, 4), 0.25, dtype=np.float32)
    assert REFINERS["concept"](picture(4, 4), scores, np.full((1, 2, 2), 0.81))[0, 0, 0] == pytest.approx(0.45)


def test_prompts_that_sam_3_cannot_read_are_refused(concept):
    with pytest.raises(ValueError, match="wanted one or more per class"):
        encode_concepts(concept, [["smoke"], []])
    with pytest.raises(ValueError, match=r"has \d+ tokens, but SAM 3 reads at most 32; shorten it"):
        encode_concepts(concept, [["very " * 30]])


def test_a_folder_that_lacks_a_file_says_which(folder, tmp_path):
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(
        ValueError, match=r"model.safetensors, vocab.json, merges.txt missing \(found: config.json\); put .* of a SAM 3"
    ):
        check_concept(tmp_path)
    with pytest.raises(ValueError, match=r"missing \(found: no such folder\); .*facebook/sam3"):
        load_concept(tmp_path / "nowhere")
