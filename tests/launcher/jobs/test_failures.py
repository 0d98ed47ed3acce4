"""An image that fails is named, and costs its own shard alone."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support.photographs import Colours, Photographs, Segmenting, stand_in_for_a_run

from launcher.config.file import load_config
from launcher.config.sections import RefineConfig
from launcher.errors import ImageError, RunError, naming
from launcher.evaluation.evaluate import evaluate
from launcher.evaluation.measure import read_truth
from launcher.jobs import infer as infer_job
from launcher.jobs import segment as segment_job
from launcher.jobs.cues import CUES
from launcher.jobs.cues.clip import ClipCue
from launcher.jobs.cues.shards import write_cues
from launcher.jobs.network_job import try_together
from launcher.jobs.refine import refine
from shards.folder import ShardFolder
from shards.image_bytes import encode_image
from shards.schema import DataError, Sample
from shards.write import write_split

BAD = 3  # number of the sample that fails


class Failing(Colours):
    """Fails at the image that is white."""

    def forward(self, image):
        if (image > 0.99).flatten(1).all(dim=1).any():
            raise IndexError("too white")
        return super().forward(image)


class Whitened(Photographs):
    """One of the photographs is white."""

    def __getitem__(self, n):
        sample = super().__getitem__(n)
        if n != BAD:
            return sample
        white = encode_image(np.full((24, 24, 3), 255, dtype=np.uint8))
        return Sample(key=sample.key, image=white, image_label=(), group=sample.group, source=sample.source)


@pytest.fixture
def pets(tmp_path):
    """Six photographs in three shards, one of them white."""
    write_split(Whitened("val", 6, with_masks=False), tmp_path, "val", "label", num_shards=3)
    return ShardFolder(tmp_path / "val")


@pytest.fixture
def failing(in_tmp, tiny_yaml, monkeypatch):
    def config_of(overrides):
        return load_config(tiny_yaml("classify"), ["segment.workers=0", "cam.kinds=[class_map]", *overrides])

    for job in (infer_job, segment_job):
        stand_in_for_a_run(job, monkeypatch, config_of, Photographs.class_set, Segmenting(Failing()))
    return in_tmp / "runs/pets"


def bad_of(shards):
    """(key, name of its shard)."""
    number = shards.keys.index(Photographs("val").key(BAD))
    return shards.keys[number], shards.index.shards[shards.shard_of[number]].name


def check_only_the_bad_shard_is_missing(shards, folder):
    _, lacking = bad_of(shards)
    names = {shard.name for shard in shards.index.shards}
    assert {path.name for path in Path(folder).glob("*.tar")} == names - {lacking}


@pytest.mark.parametrize("batch_size", [1, 4])
def test_infer_names_the_image_that_fails_and_writes_all_other_shards(failing, pets, batch_size):
    key, _ = bad_of(pets)
    said = (
        rf"infer val: 1 of 3 shards failed, all others were written:\n  .*sample '{key}': IndexError: too white .*\.py:"
    )
    for _ in range(2):  # a second start fails alike, and changes nothing
        with pytest.raises(RunError, match=said):
            infer_job.infer(failing, "val", pets.folder, [f"cam.batch_size={batch_size}"])
        check_only_the_bad_shard_is_missing(pets, failing / "cams/val")


@pytest.mark.parametrize("options", [["segment.size=native"], ["segment.size=squash", "segment.batch_size=4"]])
def test_segment_names_the_image_that_fails_and_writes_all_other_shards(failing, pets, options):
    key, _ = bad_of(pets)
    with pytest.raises(RunError, match=rf"1 of 3 shards failed.*\n  .*sample '{key}': IndexError: too white"):
        segment_job.segment(failing, "val", pets.folder, ["segment.crf=false", *options])
    check_only_the_bad_shard_is_missing(pets, failing / "segments/val")


@pytest.mark.parametrize("at_a_time", [1, 4])
def test_cues_name_the_image_that_fails_and_write_all_other_shards(pets, tmp_path, monkeypatch, at_a_time):
    class Cue(ClipCue):
        def identify(self, classes):
            return {}

        def start(self, device, classes):
            def make(images):
                if any((image > 250).all() for image in images):
                    raise RuntimeError("too white")
                return [np.zeros((2, 3, 3), dtype=np.float32) for _ in images]

            return make

    monkeypatch.setitem(CUES, "clip", Cue)
    key, _ = bad_of(pets)
    with pytest.raises(RunError, match=rf"clip cues of val: 1 of 3 .*\n  .*sample '{key}': RuntimeError: too white"):
        write_cues("clip", pets.folder, tmp_path / "cues", weights=Path("none"), batch_size=at_a_time)
    check_only_the_bad_shard_is_missing(pets, tmp_path / "cues/val")


def test_refine_and_evaluate_name_the_image_that_fails_whatever_it_raises(run, scenes, monkeypatch):
    val = ShardFolder(scenes / "val", "pixel")
    key = val.keys[5]

    def broken(chain, image_HW3, scores_nHW, cues):
        if (image_HW3 == val.image(5)).all():
            raise IndexError("a hole")
        return scores_nHW

    monkeypatch.setattr("launcher.jobs.refine.run_chain", broken)
    settings = RefineConfig(cams=("grad",), chain=(), workers=1)
    with pytest.raises(RunError, match=rf"1 of 12 shards failed, .*:\n  .*sample '{key}': IndexError: a hole"):
        refine(run, ["val"], settings)
    assert len(list((run / "masks/grad+threshold/val").glob("*.tar"))) == 11

    shutil.rmtree(run / "masks")

    def unreadable(shards, number):
        if shards.keys[number] == key:
            raise ZeroDivisionError("no pixel")
        return read_truth(shards, number)

    monkeypatch.setattr("launcher.evaluation.count.read_truth", unreadable)
    with pytest.raises(DataError, match=rf"sample '{key}': ZeroDivisionError: no pixel"):
        evaluate(run)


def test_what_is_no_images_fault_stops_the_job_at_once(failing, pets, monkeypatch):
    asked = []

    def broken(method, shards, numbers, config, device):
        asked.append(numbers)
        raise RunError("gives no segmentation")
        yield

    monkeypatch.setattr(infer_job, "score_samples", broken)
    with pytest.raises(RunError, match="^gives no segmentation$"):
        infer_job.infer(failing, "val", pets.folder)
    assert len(asked) == 1
    with pytest.raises(RunError, match="^settings$"), naming("image 'a'"):
        raise RunError("settings")


def test_a_disk_that_takes_no_shard_stops_the_job_at_its_first(failing, pets, monkeypatch):
    tried = []

    def full(path, samples, publish):
        tried.append((path.name, len(list(samples))))
        raise DataError(f"{path}: No space left on device")

    monkeypatch.setattr("launcher.jobs.over_shards.write_tar", full)
    with pytest.raises(DataError, match="No space left"):
        infer_job.infer(failing, "val", pets.folder, ["cam.batch_size=1"])
    assert len(tried) == 1


def test_an_image_that_does_not_decode_is_named_and_costs_its_own_shard(failing, pets):
    key, name = bad_of(pets)
    shard = next(shard for shard in pets.index.shards if shard.name == name)
    offset, size = shard.members["jpg"][shard.keys.index(key)]
    with (pets.folder / name).open("r+b") as file:
        file.seek(offset)
        file.write(bytes(size))
    with pytest.raises(RunError, match=rf"1 of 3 shards failed.*\n  .*sample '{key}': image does not decode"):
        infer_job.infer(failing, "val", pets.folder, ["cam.batch_size=4"])
    check_only_the_bad_shard_is_missing(pets, failing / "cams/val")


def test_images_that_fail_only_together_are_named_together():
    def work(images):
        if len(images) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return images

    assert try_together(work, [1], ["a"]) == [1]
    with pytest.raises(ImageError, match="a and 2 more, together: OutOfMemoryError: out of memory") as told:
        try_together(work, [1, 2, 3], ["a", "b", "c"])
    assert str(told.value).endswith("; lower cam.batch_size or segment.batch_size")
