"""Batches of two neighbouring frames of a clip: which, seen how, and the same on any number of processes."""

import numpy as np
import pytest
import torch

from shards.batches.augment import Augment
from shards.batches.loaders import train_loader
from shards.batches.order import Neighbours, Slice, StepSampler
from shards.folder import ShardFolder
from shards.schema import DataError, Frame
from shards.sources.drifting import Drifting
from shards.sources.joined import Joined
from shards.write import write_split

AUGMENT = Augment(size=16, min_crop=0.5)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    out = tmp_path_factory.mktemp("clips")
    write_split(Drifting(split="train", num_images=24, size=32, frames=6), out, "train", "label", num_shards=8)
    return ShardFolder(out / "train", "label")


def batches_of(shards, steps, *, ranks=1, workers=0, accumulate=1, first_step=0, size=8, seed=3, pairs=2):
    per_rank = []
    for rank in range(ranks):
        part = Slice(rank=rank, ranks=ranks, global_batch_size=size, accumulate=accumulate)
        options = {"seed": seed, "part": part, "workers": workers, "first_step": first_step, "pairs": pairs}
        loader = iter(train_loader(shards, AUGMENT, **options))
        per_rank.append([next(loader) for _ in range(steps * accumulate)])
    order = [(rank, s * accumulate + m) for s in range(steps) for m in range(accumulate) for rank in range(ranks)]
    parts = [per_rank[rank][number] for rank, number in order]
    return [key for part in parts for key in part["key"]], torch.cat([part["image"] for part in parts])


@pytest.fixture(scope="module")
def reference(clips):
    return batches_of(clips, 9)  # 72 images: 36 pairs, an epoch and a half


def test_images_2i_and_2i_plus_1_are_different_frames_of_a_clip_not_too_far_apart(clips, reference):
    frames = [clips.frames[clips.number_of_key[key]] for key in reference[0]]
    for first, second in zip(frames[::2], frames[1::2], strict=True):
        assert first.clip == second.clip and 1 <= abs(first.number - second.number) <= 2
    assert len({(first.number - second.number) for first, second in zip(frames[::2], frames[1::2], strict=True)}) == 4


def test_each_epoch_has_every_frame_once_as_the_first_of_a_pair(clips, reference):
    firsts = reference[0][::2]
    assert sorted(firsts[:24]) == sorted(clips.keys) and firsts[24:] != firsts[:12]


@pytest.mark.parametrize(("ranks", "workers", "accumulate"), [(2, 0, 2), (4, 0, 1), (1, 2, 1)])
def test_pairs_do_not_depend_on_processes_and_micro_batches(clips, reference, ranks, workers, accumulate):
    keys, images = batches_of(clips, 9, ranks=ranks, workers=workers, accumulate=accumulate)
    assert keys == reference[0] and torch.equal(images, reference[1])


def test_resuming_needs_one_integer_also_within_a_pass_over_the_clips(clips, reference):
    keys, images = batches_of(clips, 4, first_step=5)
    assert keys == reference[0][40:] and torch.equal(images, reference[1][40:])


def test_crop_and_flip_are_drawn_once_for_a_pair(clips):
    """Of frames without smoke or cloud below the horizon the views differ by noise alone, whatever was drawn."""
    _, images = batches_of(clips, 6)
    pairs = images.float().unflatten(0, (-1, 2))[:, :, :, 14:]  # ground
    within = (pairs[:, 0] - pairs[:, 1]).abs().mean(dim=(1, 2, 3))
    across = (pairs[:-1, 0] - pairs[1:, 1]).abs().mean(dim=(1, 2, 3))
    assert within.max() < 0.5 * across.median()


def test_without_pairs_places_are_as_they_were(clips):
    part = Slice(rank=0, ranks=1, global_batch_size=4)
    sizes = [len(shard.keys) for shard in clips.index.shards]
    plain = next(iter(StepSampler(sizes, 3, part)))
    pairs = next(iter(StepSampler(sizes, 3, part, neighbours=Neighbours(clips.frames, 2, "here"))))
    assert [place[:2] for place in pairs[::2]] == plain[:2] and all(len(place) == 2 for place in plain)


def test_a_frame_far_from_all_others_or_of_no_clip_is_paired_with_itself():
    frames = [Frame("a", 0), Frame("a", 3), Frame("a", 50), None, Frame("b", 3)]
    neighbours = Neighbours(frames, 5, "here")
    assert [neighbours.draw(n, 0, 0) for n in range(5)] == [1, 0, 2, 3, 4]
    assert Neighbours([Frame("a", 1), Frame("a", 6)], 5, "here").draw(0, 0, 0) == 1  # as far apart as they may be


def test_neighbours_are_drawn_evenly_and_anew_in_each_epoch():
    neighbours = Neighbours([Frame("a", 10 * n) for n in range(9)], 20, "here")
    drawn = [neighbours.draw(4, seed=0, epoch=epoch) for epoch in range(400)]
    assert np.bincount(drawn, minlength=9)[[0, 1, 4, 7, 8]].tolist() == [0] * 5
    assert min(np.bincount(drawn)[[2, 3, 5, 6]]) > 70
    of_key = [np.random.default_rng((0, epoch, 4, 1)).integers(4) for epoch in range(20)]  # a run goes on as it began
    assert drawn[:20] == [(2, 3, 5, 6)[n] for n in of_key]


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([None, Frame("a", 1), Frame("b", 1)], "here: data.pairs needs two frames of one clip, but there are none"),
        ([Frame("a", 1), Frame("a", 9)], "here: frames of a clip are 8 apart or more; data.pairs is 5: raise it"),
        ([Frame("a", 1), Frame("a", 2), Frame("a", 2)], "here: two frames of the clip 'a' have the number 2"),
    ],
)
def test_data_without_pairs_are_refused(frames, message):
    with pytest.raises(DataError, match=message):
        Neighbours(frames, 5, "here")


def test_a_micro_batch_that_would_cut_a_pair_is_refused(clips):
    with pytest.raises(DataError, match="a process has 3 images at a time; wanted an even number"):
        batches_of(clips, 1, size=6, ranks=2)


def test_the_index_keeps_places_in_clips_and_joining_keeps_clips_apart(clips, tmp_path):
    assert clips.frames[clips.number_of_key["train-clip00002-f03"]] == Frame("train-clip00002", 3)
    others = Drifting(split="train", num_images=24, size=32, frames=6, seed=1)  # of the same names
    write_split(others, tmp_path / "others", "train", "label", num_shards=2)
    both = Joined((clips.folder, tmp_path / "others/train"))
    write_split(both, tmp_path, "train", "label", num_shards=4)
    joined = ShardFolder(tmp_path / "train")
    assert joined.frames[joined.number_of_key["1_train-clip00002-f03"]] == Frame("1_train-clip00002", 3)
    assert len(Neighbours(joined.frames, 2, "here").clips) == 8


def test_shards_without_clips_say_nothing_of_frames(scenes):
    assert '"frames"' not in (scenes / "train/index.json").read_text()
    assert "frame" not in ShardFolder(scenes / "train").about(0)
