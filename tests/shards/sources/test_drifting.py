from itertools import pairwise

import numpy as np
import pytest

from shards.image_bytes import decode_image
from shards.schema import DataError
from shards.sources.drifting import Drifting


@pytest.fixture(scope="module")
def clips():
    return list(Drifting(split="val", num_images=48, size=64, frames=6, with_masks=True, seed=1))


def test_a_clip_is_a_group_whose_frames_are_numbered_and_agree_in_label_and_chimney(clips):
    assert [(s.group, *s.frame) for s in clips] == [
        (f"val-clip{n // 6:05d}", f"val-clip{n // 6:05d}", n % 6) for n in range(48)
    ]
    for n in range(0, 48, 6):
        assert len({s.image_label for s in clips[n : n + 6]}) == 1
        assert all(s.regions == clips[n].regions for s in clips[n : n + 6])
    assert {s.image_label for s in clips} == {(), (1,)}


def test_the_plume_moves_and_what_stands_behind_it_does_not(clips):
    moved, still = [], []
    for before, after in pairwise(clips):
        if before.group != after.group:
            continue
        difference = np.abs(decode_image(before.image, "").astype(int) - decode_image(after.image, "")).mean(2) / 255
        smoke = (before.mask | after.mask).astype(bool)
        assert bool(before.image_label) == smoke.any()
        if smoke.any():
            assert (before.mask != after.mask).any()
            moved.append(difference[smoke].mean())
        still.append(difference[48:][~smoke[48:]].mean())  # below the lowest horizon; clouds drift above
    assert np.mean(moved) > 1.5 * np.mean(still)
    assert max(still) < 0.02


def test_a_frame_is_a_function_of_seed_split_and_number_alone(clips):
    again = Drifting(split="val", num_images=480, size=64, frames=6, with_masks=True, seed=1)
    for n in (0, 7, 47):
        assert again[n].image == clips[n].image and np.array_equal(again[n].mask, clips[n].mask)
    assert Drifting(split="val", num_images=2, size=64, frames=2, seed=2)[0].image != clips[0].image


def test_a_clip_of_one_frame_is_refused():
    with pytest.raises(DataError, match="1 frames of a clip; wanted 2 or more"):
        Drifting(split="val", num_images=2, frames=1)
