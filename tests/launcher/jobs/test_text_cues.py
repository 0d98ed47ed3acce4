"""The cues of SAM by transformers, of SigLIP and of concepts: as test_cues has it of segment-anything and CLIP."""

import hashlib
import json
from itertools import chain

import numpy as np
import pytest
import torch
from support.clips import LOOSE, write_tiny_siglip
from support.segmenters import write_sam3, write_sam_in_both

from launcher.errors import RunError
from launcher.jobs.cues import CUES
from launcher.jobs.cues.concept import ConceptCue
from launcher.jobs.cues.sam import SamCue
from launcher.jobs.cues.shards import check_cues, read_cues, write_cues
from shards.folder import ShardFolder
from shards.sources.synthetic import Synthetic
from shards.write import write_split
from wsss.models.clip import SMOKE_NEGATIVES, SMOKE_PROMPTS, encode_prompts, load_clip
from wsss.refine.clip import clip_maps
from wsss.refine.concept import concept_maps, encode_concepts, load_concept
from wsss.refine.prompted import load_prompted, prompted_proposals
from wsss.refine.proposals import ProposalOptions


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Three frames of smoke in one shard."""
    out = tmp_path_factory.mktemp("frames")
    write_split(Synthetic(split="val", num_images=3, size=32, with_masks=False), out, "val", "label", num_shards=1)
    return ShardFolder(out / "val")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    here = tmp_path_factory.mktemp("weights")
    write_sam_in_both(here)
    write_sam3(here / "sam3")
    write_tiny_siglip(here / "siglip")
    return here


def all_cues(folder, images):
    return list(chain.from_iterable(read_cues(images, folder, shard.name) for shard in images.index.shards))


@pytest.mark.parametrize("kind", ["sam", "sam3"])
def test_sam_cues_by_transformers_are_the_proposals_of_every_image(images, weights, tmp_path, kind):
    settings = {"weights": weights / kind, "by": "transformers", **LOOSE}
    folder = write_cues("sam", images.folder, tmp_path, **settings)
    assert check_cues(folder, images.index) == "sam"
    sam, found = load_prompted(weights / kind), all_cues(folder, images)
    assert len(found) == 3
    for number, cue in enumerate(found):
        want = prompted_proposals(sam, images.image(number), ProposalOptions(**LOOSE))
        assert len(want) and np.array_equal(cue, want)
    made_of = json.loads((folder / "job.json").read_text())
    assert made_of["by"] == "transformers" and "variant" not in made_of
    assert set(made_of["weights"]) == {"config.json", "model.safetensors"}


def test_what_segment_anything_made_before_there_was_another_package_is_gone_on_with(tmp_path, monkeypatch):
    (tmp_path / "sam.pth").write_bytes(b"weights")
    cue = SamCue(weights=tmp_path / "sam.pth")
    assert cue.identify(["smoke"]) == {
        "weights": hashlib.sha256(b"weights").hexdigest(),
        "variant": "vit_h",
        "points_per_side": 32,
        "pred_iou": 0.7,
        "stability": 0.85,
        "crop_layers": 0,
        "min_area_px": 20,
    }
    assert ProposalOptions(**cue.chosen) == ProposalOptions()


def test_weights_of_the_other_package_are_refused_with_the_option_that_reads_them(images, weights, tmp_path):
    def refused(**settings):
        with pytest.raises(RunError) as told:
            write_cues("sam", images.folder, tmp_path / "cues", **settings)
        assert not (tmp_path / "cues").exists()
        return str(told.value)

    assert "a folder; segment_anything reads a .pth file, --by transformers a folder" in refused(
        weights=weights / "sam"
    )
    by = {"by": "transformers"}
    assert "a file; --by transformers reads a folder" in refused(weights=weights / "sam.pth", **by)
    assert "--variant vit_b is for segment_anything" in refused(weights=weights / "sam", variant="vit_b", **by)
    assert "config.json, model.safetensors missing (found: no such folder)" in refused(weights=weights / "gone", **by)
    assert "choose one of segment_anything, transformers" in refused(weights=weights / "sam", by="mmseg")


def test_siglip_cues_are_its_maps_and_take_no_negative_prompts(images, weights, tmp_path):
    folder = write_cues("clip", images.folder, tmp_path / "cues", weights=weights / "siglip", size=24)
    siglip = load_clip(weights / "siglip")
    prompts = encode_prompts(siglip, [SMOKE_PROMPTS], SMOKE_NEGATIVES)
    for number, cue in enumerate(all_cues(folder, images)):
        want = clip_maps(siglip, [images.image(number)], prompts, size=24)[0].numpy()
        assert cue.shape == (1, 6, 6)
        np.testing.assert_allclose(cue, want, atol=1e-3)
    with pytest.raises(RunError, match="--negative is for CLIP; SigLIP judges each prompt alone"):
        write_cues("clip", images.folder, tmp_path / "no", weights=weights / "siglip", negative=["a boat"])
    made_of = json.loads((folder / "job.json").read_text())
    assert made_of["negative"] == []


def test_concept_cues_are_the_maps_of_every_image_in_the_form_of_clips(images, weights, tmp_path):
    settings = {"weights": weights / "sam3", "map_size": 16, "prompt": ["smoke=smog"], "batch_size": 2}
    folder = write_cues("concept", images.folder, tmp_path, **settings)
    assert check_cues(folder, images.index) == "concept"
    sam3 = load_concept(weights / "sam3")
    prompts = encode_concepts(sam3, [["smog"]])
    for number, cue in enumerate(all_cues(folder, images)):
        want = concept_maps(sam3, [images.image(number)], prompts, map_size=16)[0].numpy()
        assert cue.shape == (1, 16, 16) and cue.dtype == np.float32
        np.testing.assert_allclose(cue, want, atol=1e-3)
    assert CUES["concept"].select_classes(torch.arange(3), [1, 3]).tolist() == [0, 2]
    made_of = json.loads((folder / "job.json").read_text())
    assert made_of["prompts"] == [["smog"]] and made_of["map_size"] == 16


def test_a_concept_is_asked_by_its_classs_name_or_by_other_words(weights):
    asked = ConceptCue(weights=weights, prompt=["tvmonitor=a television", "cat= kitten", "cat=cat"])
    assert asked.prompts(["cat", "dog", "tvmonitor"]) == [["kitten", "cat"], ["dog"], ["a television"]]
    assert ConceptCue(weights=weights).prompts(["smoke"]) == [["smoke"]]
    for wrong in ("bird=a bird", "cat", "cat= "):
        with pytest.raises(RunError, match=f"--prompt '{wrong}': wanted CLASS=WORDS with one of the classes cat, dog"):
            ConceptCue(weights=weights, prompt=[wrong]).prompts(["cat", "dog"])


def test_a_folder_that_is_no_sam_3_is_refused_before_anything_is_written(images, weights, tmp_path):
    with pytest.raises(RunError, match=r"vocab.json, merges.txt missing \(found: config.json, model.safetensors\)"):
        write_cues("concept", images.folder, tmp_path / "cues", weights=weights / "sam")
    assert not (tmp_path / "cues").exists()
