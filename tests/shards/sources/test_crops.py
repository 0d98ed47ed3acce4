import pickle
from dataclasses import dataclass, replace

import numpy as np
import pytest

from shards.image_bytes import decode_image, encode_image
from shards.schema import SMOKE, ClassSet, DataError, Sample
from shards.sources.crops import clipped, crop, grid_crops, legacy_crops
from shards.write import write_split


@pytest.fixture
def unit_mask():
    """100 x 100: 12 rows and 24 columns fall away. Window 40, stride 16: tops 12, 28, 44, 60, lefts 24, 40, 56."""
    return np.zeros((100, 100), dtype=np.uint8)


def test_windows_start_behind_the_margins_and_step_while_they_fit(unit_mask):
    boxes = legacy_crops(unit_mask, window=40, stride=16, negatives=99)
    assert boxes == [(y, y + 40, x, x + 40) for y in (12, 28, 44, 60) for x in (24, 40, 56)]


def test_the_paper_s_frame_gives_4_rows_of_8_windows():
    boxes = legacy_crops(np.zeros((1080, 1920), dtype=np.uint8), negatives=99)  # margins 129 rows and 460 columns
    assert sorted({box[0] for box in boxes}) == [129, 257, 385, 513]
    assert sorted({box[2] for box in boxes}) == [460, 588, 716, 844, 972, 1100, 1228, 1356]
    assert len(boxes) == 32


def test_the_three_of_most_smoke_are_kept_and_windows_without_any_follow(unit_mask):
    unit_mask[20:40, 80:90] = 1
    # x 80:90 lies in windows at 56 whole (to 96) and not in those at 24 (to 64) or 40 (to 80).
    # y 20:40 lies whole in tops 12 (to 52), in 28 by 12 rows, not in 44 and 60.
    positives = [(12, 52, 56, 96), (28, 68, 56, 96)]
    boxes = legacy_crops(unit_mask, window=40, stride=16)
    assert boxes[:2] == positives
    # Ten are without smoke: 2 in each of the first two rows, 3 in the others. Of them 0, 10 // 3 and 20 // 3.
    assert boxes[2:] == [(12, 52, 24, 64), (28, 68, 40, 80), (44, 84, 56, 96)]
    assert legacy_crops(unit_mask, window=40, stride=16, negatives=0) == positives


def test_of_equals_the_first_in_row_major_order_wins(unit_mask):
    unit_mask[:] = 1
    assert legacy_crops(unit_mask, window=40, stride=16) == [(12, 52, 24, 64), (12, 52, 40, 80), (12, 52, 56, 96)]


@pytest.mark.parametrize(("pixels", "positives"), [(7, 0), (8, 1), (9, 1)])
def test_half_a_per_cent_of_the_window_is_enough(unit_mask, pixels, positives):
    unit_mask[99, 95 - pixels : 95] = 1  # 8 of 40 x 40; only the bottom right window sees all of it
    unit_mask[99, :80] = 0
    boxes = legacy_crops(unit_mask, window=40, stride=16, negatives=0)
    assert len(boxes) == positives
    assert not boxes or boxes[0] == (60, 100, 56, 96)


def test_smoke_in_the_margins_and_ignored_pixels_make_neither_positives_nor_negatives(unit_mask):
    unit_mask[:12], unit_mask[:, :24] = 1, 1
    assert len(legacy_crops(unit_mask, window=40, stride=16, negatives=99)) == 12
    unit_mask[12:, 24:] = 255
    assert legacy_crops(unit_mask, window=40, stride=16, negatives=99) == []


def test_a_frame_too_small_for_the_window_is_refused(unit_mask):
    assert len(legacy_crops(unit_mask, window=76, stride=16)) == 1
    with pytest.raises(DataError, match="frame of 100 x 100 .* 88 x 76; no window of 77 fits"):
        legacy_crops(unit_mask, window=77)
    with pytest.raises(DataError, match="frame of 100 x 50 .*wanted 1 <= stride <= window <= the frame's smaller side"):
        grid_crops(100, 50, window=64)
    with pytest.raises(DataError, match="stride 41"):
        grid_crops(100, 50, window=40, stride=41)


def test_a_grid_ends_at_the_border():
    assert grid_crops(50, 40, window=20, stride=20) == [
        (0, 20, 0, 20),
        (0, 20, 20, 40),
        (20, 40, 0, 20),
        (20, 40, 20, 40),
        (30, 50, 0, 20),
        (30, 50, 20, 40),
    ]
    assert grid_crops(20, 20, window=20, stride=3) == [(0, 20, 0, 20)]
    assert len(grid_crops(1080, 1920)) == 3 * 4


@pytest.mark.parametrize(("height", "width", "window", "stride"), [(50, 40, 20, 20), (53, 47, 16, 5), (31, 90, 31, 7)])
def test_a_grid_covers_every_pixel_with_different_windows(height, width, window, stride):
    boxes = grid_crops(height, width, window=window, stride=stride)
    covered_HW = np.zeros((height, width), dtype=bool)
    for y0, y1, x0, x1 in boxes:
        assert (y1 - y0, x1 - x0) == (window, window) and y1 <= height and x1 <= width
        covered_HW[y0:y1, x0:x1] = True
    assert covered_HW.all() and len(set(boxes)) == len(boxes)


@dataclass(frozen=True, kw_only=True)
class TwoFrames:
    """100 x 100; smoke at (20:40, 80:90) of the first, none in the second; red grows to the right, green down."""

    with_masks: bool = True
    class_set: ClassSet = SMOKE

    def __len__(self) -> int:
        return 2

    def groups(self) -> list[str]:
        return ["video0", "video1"]

    def __getitem__(self, index: int) -> Sample:
        mask = np.zeros((100, 100), dtype=np.uint8)
        mask[20:40, 80:90] = 1 - index
        image = np.zeros((100, 100, 3), dtype=np.uint8)
        image[..., 0], image[..., 1] = 2 * np.arange(100)[None, :], 2 * np.arange(100)[:, None]
        return Sample(
            key=f"frame{index}",
            image=encode_image(image),
            image_label=(1,) if index == 0 else (),
            group=f"video{index}",
            source="test",
            mask=mask if self.with_masks else None,
            regions={"chimney": [(0, 50, 70, 100)]},
        )


def test_crops_carry_their_part_of_image_mask_and_regions():
    source = crop(TwoFrames(), "grid", window=60)
    assert [box for _, box in source.boxes] == [
        (0, 60, 0, 60),
        (0, 60, 40, 100),
        (40, 100, 0, 60),
        (40, 100, 40, 100),
    ] * 2
    assert source.groups() == ["video0"] * 4 + ["video1"] * 4
    first = source[1]
    assert (first.key, first.group, first.image_label) == ("frame0_0_40", "video0", (1,))
    assert first.mask.sum() == 200 and first.mask[20:40, 40:50].all()
    assert first.regions == {"chimney": [(0, 50, 30, 60)]}
    red_hw, green_hw, _ = decode_image(first.image, "").transpose(2, 0, 1).astype(int)
    assert abs(red_hw[:, 5].mean() - 2 * 45) < 4 and abs(green_hw[5].mean() - 2 * 5) < 4
    assert [source[n].image_label for n in range(8)] == [(), (1,), (), (), (), (), (), ()]
    assert source[2].regions == {"chimney": []}


def test_label_only_crops_hold_no_mask_or_regions_and_are_labelled_by_it(tmp_path):
    source = crop(TwoFrames(), "legacy", window=40, stride=16, with_masks=False)
    assert len(source) == 2 + 3 + 3  # positives and negatives of the first frame, negatives of the second
    index = write_split(source, tmp_path, "train", "label")
    assert (index.num_samples, index.class_counts()) == (8, {"smoke": 2})
    with pytest.raises(DataError, match="shares 2 groups with split 'train'"):
        write_split(replace(source, with_masks=True), tmp_path, "val", "pixel")


def test_pixel_crops_make_a_split_and_go_to_worker_processes(tmp_path):
    source = pickle.loads(pickle.dumps(crop(TwoFrames(), "grid", window=60)))
    assert write_split(source, tmp_path, "val", "pixel").class_counts() == {"smoke": 1}


def test_the_plan_goes_over_all_frames_through_what_runs_it():
    seen = []

    def run(work, numbers):
        seen.extend(numbers)
        return map(work, numbers)

    assert crop(TwoFrames(), "legacy", window=40, stride=16, negatives=0, run=run).boxes == (
        (0, (12, 52, 56, 96)),
        (0, (28, 68, 56, 96)),
    )
    assert seen == [0, 1]


def test_frames_without_mask_too_small_or_without_a_crop_are_told():
    with pytest.raises(DataError, match="test: sample 'frame0': has no mask"):
        crop(TwoFrames(with_masks=False), "grid", window=60)
    with pytest.raises(DataError, match="test: sample 'frame0': frame of 100 x 100"):
        crop(TwoFrames(), "legacy")
    with pytest.raises(DataError, match="protocol 'legacy': no crop in any of 2 frames"):
        crop(OnlyIgnored(), "legacy", window=40)


@dataclass(frozen=True, kw_only=True)
class OnlyIgnored(TwoFrames):
    def __getitem__(self, index: int) -> Sample:
        return replace(super().__getitem__(index), mask=np.full((100, 100), 255, dtype=np.uint8))


def test_regions_are_cut_at_the_crop():
    boxes = [(0, 10, 0, 10), (5, 15, 8, 30), (20, 30, 20, 30), (4, 5, 3, 9)]
    assert clipped(boxes, (5, 20, 5, 25)) == [(0, 5, 0, 5), (0, 10, 3, 20)]
