import hashlib
import io
import json
import runpy
import subprocess
import sys
from contextlib import redirect_stderr, suppress
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import typer
from support.clips import LOOSE, write_tiny_clip
from support.places import ROOT
from support.together import together
from typer.testing import CliRunner

from launcher.commands import cues as cue_commands
from launcher.errors import ConfigError, RunError
from launcher.jobs.cues import CUES, find_cue
from launcher.jobs.cues.clip import ClipCue
from launcher.jobs.cues.shards import check_cues, read_cues, write_cues
from launcher.processes import accelerator
from shards.digests import publish_noted
from shards.folder import ShardFolder
from shards.index import Index
from shards.schema import DataError
from shards.sources.synthetic import Synthetic
from shards.write import write_split, write_tar
from wsss.models.clip import SMOKE_NEGATIVES, SMOKE_PROMPTS, encode_prompts, load_clip
from wsss.models.sam import load_sam
from wsss.models.sam_decoder import small_sam
from wsss.refine import REFINERS, takes_cue
from wsss.refine.clip import clip_maps
from wsss.refine.proposals import ProposalOptions, sam_proposals


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Five frames of a split 'val' in three shards."""
    out = tmp_path_factory.mktemp("frames")
    write_split(Synthetic(split="val", num_images=5, size=32, with_masks=False), out, "val", "label", num_shards=3)
    return out / "val"


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    return write_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def sam_file(tmp_path, monkeypatch) -> Path:
    """A checkpoint of a tiny network that takes the name of the smallest published one."""
    from segment_anything import sam_model_registry

    def tiny(checkpoint=None):
        return small_sam(image_size=64, embed_dim=16, depth=1, num_heads=2)

    monkeypatch.setitem(sam_model_registry, "vit_b", tiny)
    torch.manual_seed(2)
    torch.save(tiny().state_dict(), tmp_path / "sam.pth")
    return tmp_path / "sam.pth"


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.tar"))}


def all_cues(folder, images):
    frames = ShardFolder(images)
    of_shards = [read_cues(frames, folder, shard.name) for shard in frames.index.shards]
    return dict(zip(frames.keys, chain.from_iterable(of_shards), strict=True))


def test_sam_cues_are_the_proposals_of_every_image(images, sam_file, tmp_path):
    folder = write_cues("sam", images, tmp_path / "cues", weights=sam_file, variant="vit_b", **LOOSE)
    assert folder == tmp_path / "cues/val"
    frames = ShardFolder(images)
    assert list(digests(folder)) == [shard.name for shard in frames.index.shards]
    found = all_cues(folder, images)
    assert list(found) == frames.keys
    sam = load_sam(sam_file, "vit_b")
    for number in (0, 3):
        want = sam_proposals(sam, frames.image(number), ProposalOptions(**LOOSE))
        assert len(want) and np.array_equal(found[frames.keys[number]], want)
    assert check_cues(folder, frames.index) == "sam"
    assert CUES["sam"].select_classes(want, [3]) is want


def test_clip_cues_are_the_maps_of_every_image(images, clip_folder, tmp_path):
    folder = write_cues("clip", images, tmp_path, weights=clip_folder, size=24, batch_size=2)
    frames, clip = ShardFolder(images), load_clip(clip_folder)
    found = all_cues(folder, images)
    assert list(found) == frames.keys and check_cues(folder, frames.index) == "clip"
    prompts = encode_prompts(clip, [SMOKE_PROMPTS], SMOKE_NEGATIVES)
    for number in range(5):
        want = clip_maps(clip, [frames.image(number)], prompts, size=24)[0].numpy()
        got = found[frames.keys[number]]
        assert got.shape == (1, 6, 6) and got.dtype == np.float32
        np.testing.assert_allclose(got, want, atol=1e-3)
    assert json.loads((folder / "job.json").read_text())["positive"] == [list(SMOKE_PROMPTS)]


def test_of_several_classes_those_of_the_scores_are_chosen():
    cue = np.arange(12.0).reshape(3, 2, 2)
    assert ClipCue.select_classes(cue, [1, 3])[:, 0, 0].tolist() == [0, 8]
    assert ClipCue.select_classes(cue, []).shape == (0, 2, 2)


def test_classes_other_than_smoke_speak_for_themselves(clip_folder):
    settings = ClipCue(weights=clip_folder)
    assert settings.prompts(["cat", "dog"])[0] == [("cat",), ("dog",)]
    assert settings.prompts(["smoke"]) == ([SMOKE_PROMPTS], SMOKE_NEGATIVES)
    mine = ClipCue(weights=clip_folder, positive=["haze", "fog"], negative=["a boat"])
    assert mine.prompts(["smoke"]) == ([["haze", "fog"]], ["a boat"])
    with pytest.raises(RunError, match="--positive needs data with one class; with 2 classes"):
        mine.prompts(["cat", "dog"])


def test_a_killed_job_goes_on_and_gives_the_same_bytes(images, clip_folder, tmp_path):
    folder = write_cues("clip", images, tmp_path, weights=clip_folder, size=16)
    before = digests(folder)
    assert len(before) == 3
    first, second, _ = before
    (folder / second).unlink()
    stamp = (folder / first).stat().st_mtime_ns
    write_cues("clip", images, tmp_path, weights=clip_folder, size=16)
    assert digests(folder) == before and (folder / first).stat().st_mtime_ns == stamp


def test_each_process_takes_its_share_of_the_missing_shards(images, clip_folder, tmp_path, monkeypatch):
    folder = write_cues("clip", images, tmp_path, weights=clip_folder, size=16)
    before = digests(folder)
    for path in folder.glob("*.tar"):
        path.unlink()
    second = SimpleNamespace(
        is_main_process=False, process_index=1, num_processes=2, device="cpu", wait_for_everyone=lambda: None
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(accelerator, "join_started", lambda **_: second)
    monkeypatch.setattr("accelerate.utils.gather_object", lambda mine: mine)
    write_cues("clip", images, tmp_path, weights=clip_folder, size=16)
    assert digests(folder) == {"val-00001.tar": before["val-00001.tar"]}


def cues_command(*arguments):
    """`wsss cues` as `accelerate launch` starts it, in a rank; returns what it said."""
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(io.StringIO()) as said:
        patch.setattr(sys, "argv", ["cues", *arguments])
        patch.setenv("ACCELERATE_USE_CPU", "true")
        with suppress(SystemExit):
            runpy.run_path(cue_commands.__file__, run_name="__main__")
    return said.getvalue().splitlines()


def test_two_processes_write_what_one_does(images, clip_folder, tmp_path):
    alone = write_cues("clip", images, tmp_path / "one", weights=clip_folder, size=16)
    options = ["--weights", clip_folder, "--size", 16, "--out", tmp_path / "two"]
    first, second = together(2, cues_command, "clip", *map(str, [images, *options]))
    assert digests(tmp_path / "two/val") == digests(alone)
    assert any("clip cues of val: 3/3" in line for line in first)  # shards 0 and 2 of 2, 2 and 1 images
    assert not any("clip cues" in line for line in second)


def test_other_settings_and_other_weights_are_not_mixed_in(images, sam_file, tmp_path):
    out = tmp_path / "cues"
    write_cues("sam", images, out, weights=sam_file, variant="vit_b", **LOOSE)
    write_cues("sam", images, out, weights=sam_file, variant="vit_b", points_per_batch=2, **LOOSE)  # memory only
    with pytest.raises(RunError, match=r"other settings \(min_area_px: 2, now 3\)"):
        write_cues("sam", images, out, weights=sam_file, variant="vit_b", **{**LOOSE, "min_area_px": 3})
    torch.manual_seed(9)
    other = small_sam(image_size=64, embed_dim=16, depth=1, num_heads=2)
    torch.save(other.state_dict(), sam_file)
    with pytest.raises(RunError, match=r"other settings \(weights: "):
        write_cues("sam", images, out, weights=sam_file, variant="vit_b", **LOOSE)


def test_missing_and_wrong_weights_are_reported_before_anything_is_written(images, clip_folder, tmp_path):
    with pytest.raises(RunError, match="SAM weights are missing; download sam_vit_l_0b3195.pth"):
        write_cues("sam", images, tmp_path / "cues", weights=tmp_path / "gone.pth", variant="vit_l")
    with pytest.raises(RunError, match="config.json, model.safetensors, vocab.json, merges.txt missing"):
        write_cues("clip", images, tmp_path / "cues", weights=tmp_path / "gone")
    assert not (tmp_path / "cues").exists()
    with pytest.raises(RunError, match="size is 30; wanted a multiple of 4"):
        write_cues("clip", images, tmp_path / "cues", weights=clip_folder, size=30)
    assert not list((tmp_path / "cues/val").glob("*.tar"))


def test_cues_of_other_images_or_unfinished_ones_are_refused(images, clip_folder, scenes, tmp_path):
    folder = write_cues("clip", images, tmp_path, weights=clip_folder, size=16)
    index = Index.load(images)
    assert check_cues(folder, index) == "clip"
    with pytest.raises(RunError, match=r"made of other images \(fingerprint .* compute the cues of these images"):
        check_cues(folder, Index.load(scenes / "val"))
    (folder / "val-00002.tar").unlink()
    with pytest.raises(RunError, match="1 of 3 shards are missing, first val-00002.tar"):
        check_cues(folder, index)
    with pytest.raises(RunError, match="no cues here; compute them with `wsss cues`"):
        check_cues(tmp_path, index)
    with pytest.raises(RunError, match="no cues here"):
        next(read_cues(ShardFolder(images), tmp_path, "val-00000.tar"))
    with pytest.raises(DataError, match="val-00002.tar: is missing; .* `wsss cues` again"):
        next(read_cues(ShardFolder(images), folder, "val-00002.tar"))


def test_damaged_cues_are_reported_with_their_place(images, clip_folder, tmp_path):
    folder = write_cues("clip", images, tmp_path, weights=clip_folder, size=16)
    frames, path = ShardFolder(images), folder / "val-00000.tar"
    keys = frames.index.shards[0].keys
    assert len(list(read_cues(frames, folder, path.name))) == len(keys) == 2
    written = path.read_bytes()
    write_tar(path, [(key, {"clip.npy": b"no array"}) for key in keys], publish_noted)  # by what wrote it
    with pytest.raises(DataError, match=rf"val-00000.tar: '{keys[0]}' is damaged .* run `wsss cues` again"):
        next(read_cues(frames, folder, path.name))
    path.write_bytes(written[:700])
    with pytest.raises(DataError, match="val-00000.tar"):
        list(read_cues(frames, folder, path.name))


def test_damaged_proposals_are_reported_with_their_place(images, sam_file, tmp_path):
    folder = write_cues("sam", images, tmp_path, weights=sam_file, variant="vit_b", **LOOSE)
    frames = ShardFolder(images)
    keys = frames.index.shards[0].keys
    write_tar(folder / "val-00000.tar", [(key, {"masks": b"no masks"}) for key in keys], publish_noted)
    with pytest.raises(DataError, match=rf"'{keys[0]}' is damaged .*not packed masks"):
        next(read_cues(frames, folder, "val-00000.tar"))


def test_the_commands_write_cues(images, clip_folder, sam_file, tmp_path):
    app = typer.Typer()
    cue_commands.register(app)
    arguments = [
        "cues",
        "clip",
        str(images),
        "--weights",
        str(clip_folder),
        "--out",
        str(tmp_path / "c"),
        "--size",
        "16",
    ]
    result = CliRunner().invoke(app, [*arguments, "--positive", "haze", "--negative", "sky", "--negative", "a boat"])
    assert result.exit_code == 0, result.output
    made_of = json.loads((tmp_path / "c/val/job.json").read_text())
    assert (made_of["size"], made_of["positive"], made_of["negative"]) == (16, [["haze"]], ["sky", "a boat"])
    arguments = ["cues", "sam", str(images), "--weights", str(sam_file), "--out", str(tmp_path / "s")]
    result = CliRunner().invoke(app, [*arguments, "--variant", "vit_b", "--points-per-side", "1"])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "s/val/job.json").read_text())["points_per_side"] == 1
    result = CliRunner().invoke(app, [*arguments, "--variant", "vit_x"])
    assert isinstance(result.exception, RunError) and "choose one of vit_b, vit_l, vit_h" in str(result.exception)


def test_every_cue_is_read_by_a_refiner_and_says_what_its_command_does():
    assert set(CUES.ours) == {name for name in REFINERS.ours if takes_cue(name)}
    assert len({cue.extension for cue in CUES.ours.values()}) == len(CUES.ours)
    assert all(cue.__doc__ and all(words.startswith("--") for words in cue.examples) for cue in CUES.ours.values())
    with pytest.raises(ConfigError, match="no cues for 'crf'; choose one of sam, clip, concept, walk"):
        find_cue("crf")


def test_a_command_that_offers_cues_does_not_import_torch():
    heavy = "{'torch', 'transformers', 'segment_anything'}"
    code = f"import sys, launcher.commands.cues; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
