from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from shards.schema import ClassSet, DataError
from shards.sources.held_out import hold_out, parse_shares
from shards.sources.labelled import Labelled, Row


def table(
    labels: Sequence[tuple[int, ...]], groups: Sequence[object] | None = None, *, classes=("smoke",), masked=()
) -> Labelled:
    """Rows of these labels; without `groups` each is its own."""
    rows = [
        Row(
            key=str(n),
            image=Path(f"{n}.jpg"),
            image_label=label,
            group=str(groups[n] if groups else n),
            mask=Path(f"{n}.png") if n in masked else None,
        )
        for n, label in enumerate(labels)
    ]
    return Labelled(rows=tuple(rows), source="s", class_set=ClassSet(name="own", classes=classes))


def many(seed: int, shares: Sequence[float], images: int = 80) -> Labelled:
    """Images that show each class with its probability."""
    rng = np.random.default_rng(seed)
    labels = [tuple(c for c, share in enumerate(shares, 1) if rng.random() < share) for _ in range(images)]
    return table(labels, classes=tuple("abcdef"[: len(shares)]))


def keys(part: Labelled) -> list[str]:
    return [row.key for row in part.rows]


def test_one_part_keeps_groups_together_and_is_refused_where_none_is_small_enough():
    source = table([(1,)] * 4 + [()] * 4, [n // 2 for n in range(8)])
    kept, held = hold_out(source, {"val": 0.5})
    assert not {*kept.groups()} & {*held["val"].groups()} and (len(kept), len(held["val"])) == (4, 4)
    with pytest.raises(
        DataError, match="hold out 10% of 8 rows: 'val' may have 0, and every group is larger; hold out more"
    ):
        hold_out(source, {"val": 0.1})


def test_of_one_class_each_part_shows_it_and_images_without_it_where_there_are():
    for seed in range(6):
        labels = [(1,) if n < 2 else () for n in np.random.default_rng(seed).permutation(8)]
        kept, held = hold_out(table(labels), {"tune": 0.25})
        for part in (kept, held["tune"]):
            assert {row.image_label for row in part.rows} == {(1,), ()}
    with pytest.raises(DataError, match="of 4 groups 1 show smoke, and no choice of at most 4 rows"):
        hold_out(table([(1,)] * 2 + [()] * 6, [n // 2 for n in range(8)]), {"tune": 0.5})


def test_of_several_classes_the_kept_part_has_all_and_the_held_out_one_as_many_as_it_can():
    # 12 images of 6 classes, two of each: 3 of them can show 3 classes at most
    source = table([(n // 2 + 1,) for n in range(12)], classes=tuple("abcdef"))
    kept, held = hold_out(source, {"val": 0.25})
    assert len({row.image_label for row in held["val"].rows}) == 3
    assert len({row.image_label for row in kept.rows}) == 6


@pytest.mark.parametrize("classes", [(0.1, 0.2, 0.5), (0.3,)])
def test_two_parts_share_no_group_and_show_of_every_class_about_the_share(classes):
    source = many(0, classes)
    kept, held = hold_out(source, {"val": 0.25, "tune": 0.15})
    assert [len(part) for part in (kept, *held.values())] == [48, 20, 12]
    assert sorted(keys(kept) + keys(held["val"]) + keys(held["tune"])) == sorted(keys(source))
    for class_id in range(1, len(classes) + 1):
        shown = [sum(class_id in row.image_label for row in part.rows) for part in (source, *held.values())]
        assert abs(shown[1] - 0.25 * shown[0]) <= 2 and abs(shown[2] - 0.15 * shown[0]) <= 2


def test_groups_of_many_images_stay_whole_over_three_parts():
    source = table([(n % 3 == 0) * (1,) for n in range(120)], [n // 5 for n in range(120)])
    kept, held = hold_out(source, {"val": 0.2, "tune": 0.2, "test": 0.2})
    parts = [kept, *held.values()]
    assert len({*source.groups()}) == sum(len({*part.groups()}) for part in parts) and len(held["test"]) == 20


def test_the_seed_alone_chooses_the_groups():
    source, shares = many(1, (0.3, 0.4)), {"val": 0.2, "tune": 0.15}
    first, again, other = (hold_out(source, shares, seed=seed)[1] for seed in (0, 0, 1))
    assert first == again and first["val"] != other["val"]


def test_with_masks_only_groups_that_have_all_of_theirs_are_held_out():
    # of 40 images in pairs the first 16 have masks, but one lacks its own; what shows no class needs none
    labels = [(1,) if n % 4 < 2 else (2,) for n in range(36)] + [()] * 4
    source = table(labels, [n // 2 for n in range(40)], classes=("a", "b"), masked={*range(16)} - {3})
    kept, held = hold_out(source, {"val": 0.2, "tune": 0.1}, masked=True)
    for part in held.values():
        assert all(row.mask or not row.image_label for row in part.rows) and len(part) in (8, 4)
    assert "3" in keys(kept)
    with pytest.raises(DataError, match="20% and 70% of 40 rows: only 18, in 9 groups, have a mask for each image"):
        hold_out(source, {"val": 0.2, "tune": 0.7}, masked=True)


def test_videos_of_which_some_frames_have_masks_are_held_out_whole_and_judged_by_these():
    # 8 videos of 10 frames, smoke in the even ones; of videos 0 to 3 the first frame has a mask, of 4 and on none
    labels = [(1,) if n % 2 == 0 else () for n in range(80)]
    source = table(labels, [n // 10 for n in range(80)], masked={0, 10, 20, 30})
    with pytest.raises(DataError, match="only 0, in 0 groups, have a mask for each .* leave .* out .--skip-unmasked"):
        hold_out(source, {"val": 0.25, "tune": 0.15}, masked=True)
    kept, held = hold_out(source, {"val": 0.25, "tune": 0.15}, masked=True, skip=True)
    assert (len(kept), len(held["val"]), len(held["tune"])) == (60 - 10, 20, 10)  # the share is of whole videos
    val = held["val"].without_lacking()
    assert len(val) == 2 * (1 + 5) and not val.lacking and not {*val.groups()} & {*"4567"}
    with pytest.raises(DataError, match="only 40, in 4 groups, have a mask for an image with a class; add masks, hold"):
        hold_out(source, {"val": 0.6, "tune": 0.3}, masked=True, skip=True)


def test_a_class_without_a_mask_in_a_group_is_not_judged_there():
    # two of six groups show both classes; group 0 has a mask of class 1 alone, group 1 of both
    source = table([(1,), (2,)] * 6, [n // 2 for n in range(12)], classes=("a", "b"), masked={0, 2, 3, 4, 6, 8, 10})
    for seed in range(5):
        _, held = hold_out(source, {"val": 0.2}, masked=True, skip=True, seed=seed)
        assert {*held["val"].groups()} == {"1"}  # the one that judges both classes


def test_without_any_mask_nothing_can_be_left_out():
    with pytest.raises(DataError, match="none of the 2 frames labelled smoke has a mask, first '0'"):
        table([(1,), (1,), ()]).without_lacking()


def test_a_part_of_less_than_half_its_share_is_refused():
    # a group of 1 and five of 10: of a share of 9 there is nothing but the one
    source = table([(1,) if n % 2 else () for n in range(51)], [0] + [1 + n // 10 for n in range(50)])
    with pytest.raises(DataError, match="'val' may have 9, and the groups that are no larger hold 1, less than half"):
        hold_out(source, {"val": 0.18})


def test_shares_are_read_and_what_is_none_is_refused():
    assert parse_shares("0.2", "val", "train") == {"val": 0.2}
    assert parse_shares("val=0.2, tune=.15", "val", "train") == {"val": 0.2, "tune": 0.15}
    for wrong in ("20", "val", "val=", "val=20%", "val=0.2,", "0", "nan", "val=0.2;tune=0.1", "-0.1"):
        with pytest.raises(DataError, match="wanted a share between 0 and 1, or several .* val=0.2,tune=0.15"):
            parse_shares(wrong, "val", "train")
    for twice in ("val=0.2,val=0.1", "0.2,val=0.1", "train=0.2"):
        with pytest.raises(DataError, match="give each part its own name"):
            parse_shares(twice, "val", "train")
    with pytest.raises(DataError, match="holds out 95% of the rows; wanted 90% at most"):
        parse_shares("val=0.5,tune=0.45", "val", "train")
