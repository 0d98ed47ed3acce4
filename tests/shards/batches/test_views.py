import numpy as np
import pytest
import torch
from PIL import Image

from shards.batches.augment import View
from shards.batches.loaders import train_loader
from shards.batches.order import Slice
from shards.batches.views import PARAMETERS, TwoViews, random_part
from shards.folder import ShardFolder
from shards.schema import DataError
from wsss.photometric import COLUMNS, photometric

VIEWS = TwoViews(size=32)
SHAPES = {"small": (9, 13), "tall": (90, 11), "wide": (11, 90), "exact": (32, 32), "large": (80, 100)}


def generators(count=40):
    return (np.random.default_rng(seed) for seed in range(count))


def fixed(**options):
    """Views without chance in scale and mirrors, but for what is given."""
    return TwoViews(**{"size": 32, "scale": (1.0, 1.0), "flip": 0.0, "main_flip": 0.0, "local_flip": 0.0, **options})


def numbered(height, width):
    """An image whose red is the row and whose green is the column."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[..., 0], image[..., 1], image[..., 2] = np.arange(height)[:, None], np.arange(width), 255
    return image


def test_the_loader_and_the_device_agree_about_the_columns():
    assert PARAMETERS == COLUMNS


@pytest.mark.parametrize("shape", SHAPES)
def test_inside_the_box_is_the_image_and_outside_it_is_black(shape):
    white = np.full((*SHAPES[shape], 3), 255, dtype=np.uint8)
    mask = np.full(SHAPES[shape], 7, dtype=np.uint8)
    partly = 0
    for rng in generators():
        view = VIEWS(white, rng, mask)
        y0, y1, x0, x1 = view.box
        inside = np.zeros((32, 32), dtype=bool)
        inside[y0:y1, x0:x1] = True
        assert view.image_SS3.shape == (32, 32, 3) and view.image_SS3.dtype == np.uint8
        assert (view.image_SS3[inside] == 255).all() and not view.image_SS3[~inside].any() and inside.any()
        assert (view.mask_SS[inside] == 7).all() and (view.mask_SS[~inside] == 255).all()
        partly += not inside.all()
        assert view.more["view2"].shape == (3, 32, 32) and (view.more["view2"] == 255).all()
    assert (partly == 0) == (shape == "large")  # the smallest scale leaves 40 x 50 px of it


def test_a_small_image_lies_at_every_place_of_the_canvas():
    places = {fixed(size=12)(numbered(9, 11), rng).box for rng in generators(200)}
    assert places == {(y, y + 9, x, x + 11) for y in range(4) for x in range(2)}


def test_a_large_image_is_cropped_at_every_place():
    corners = {tuple(fixed(size=8)(numbered(10, 9), rng).image_SS3[0, 0, :2].tolist()) for rng in generators(200)}
    assert corners == {(y, x) for y in range(3) for x in range(2)}


def test_an_image_of_the_exact_size_is_unchanged():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    view = fixed()(image, np.random.default_rng(0))
    assert np.array_equal(view.image_SS3, image) and view.box == (0, 32, 0, 32) and view.mask_SS is None


def test_a_tall_image_is_cropped_along_one_side_and_placed_along_the_other():
    for rng in generators(20):
        view = fixed()(numbered(90, 11), rng)
        y0, y1, x0, x1 = view.box
        assert (y0, y1) == (0, 32) and x1 - x0 == 11
        rows = view.image_SS3[:, x0:x1, 0]
        assert (np.diff(rows.astype(int), axis=0) == 1).all() and (rows == rows[:, :1]).all()


@pytest.mark.parametrize(("flip", "main_flip"), [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_mirrors_turn_the_image_and_the_second_one_also_its_box(flip, main_flip):
    image = numbered(20, 11)
    for seed in range(10):
        plain = fixed()(image, np.random.default_rng(seed))
        view = fixed(flip=flip, main_flip=main_flip)(image, np.random.default_rng(seed), image[..., 1])
        y0, y1, x0, x1 = plain.box
        assert view.box == (y0, y1, *((32 - x1, 32 - x0) if main_flip else (x0, x1)))
        columns = view.image_SS3[y0, view.box[2] : view.box[3], 1]
        assert columns.tolist() == list(range(11))[:: -1 if flip != main_flip else 1]
        assert np.array_equal(
            view.mask_SS[y0:y1, view.box[2] : view.box[3]], view.image_SS3[y0:y1, view.box[2] : view.box[3], 1]
        )
        assert view.more["main_flip"] == bool(main_flip) and view.more["main_flip"].dtype == bool


def test_the_crop_of_a_scaled_image_is_a_crop_of_the_image_scaled_whole():
    y, x = np.mgrid[0:60, 0:70]
    waves = np.stack([np.sin(y / 3) + np.cos(x / 4), np.sin(x / 2), np.cos(y / 5 + x / 3)], axis=-1)
    image = ((waves + 2) * 60).astype(np.uint8)
    for factor in (0.7, 1.0, 1.9):
        whole = np.asarray(
            Image.fromarray(image).resize((round(70 * factor), round(60 * factor)), Image.Resampling.BILINEAR)
        )
        windows = np.lib.stride_tricks.sliding_window_view(whole.astype(int), (32, 32), axis=(0, 1))
        view = fixed(scale=(factor, factor))(image, np.random.default_rng(1)).image_SS3
        assert (
            np.abs(windows - view.transpose(2, 0, 1)).max(axis=(2, 3, 4)).min() <= 2
        )  # each rounds to 8 bits between its two passes


def test_the_scale_is_uniform_in_its_range():
    white = np.full((100, 100, 3), 255, dtype=np.uint8)
    sides = [TwoViews(size=300, scale=(0.5, 2.0))(white, rng).box for rng in generators(300)]
    sides = np.array([y1 - y0 for y0, y1, _, _ in sides])
    assert sides.min() < 55 and sides.max() > 195 and abs(sides.mean() - 125) < 4 * 150 / np.sqrt(12 * 300)


def test_the_second_view_shows_a_part_of_the_whole_image_and_half_of_them_mirrored():
    widths, mirrored = [], 0
    for rng in generators(200):
        rows, columns, _ = VIEWS(numbered(100, 120), rng).more["view2"].astype(int)
        mirrored += columns[0, 0] > columns[0, -1]
        assert (np.diff(rows[:, 0]) >= 0).all() and (rows == rows[:, :1]).all() and (columns == columns[:1]).all()
        widths.append(np.abs(np.diff(columns[0])).sum() * 32 / 31)
    assert 40 < min(widths) < 80 and 100 < max(widths) < 122  # 120 px, area share 0.4 to 1, ratio 3/4 to 4/3
    assert 70 < mirrored < 130


def test_the_second_view_is_bicubic():
    image = np.random.default_rng(0).integers(0, 256, (90, 9, 3), dtype=np.uint8)
    centre = Image.fromarray(image[39:51]).resize((32, 32), Image.Resampling.BICUBIC)  # no other part fits
    view = fixed(view2_scale=(0.9, 1.0))(image, np.random.default_rng(0)).more["view2"]
    assert np.array_equal(view.transpose(1, 2, 0), np.asarray(centre))


def test_parts_have_their_area_ratio_and_place():
    rng, shares = np.random.default_rng(0), []
    ratios, corners = [], []
    for _ in range(2000):
        u = iter(rng.random(22))
        x0, y0, x1, y1 = random_part(300, 400, (0.4, 1.0), u)
        assert next(u, None) is None
        assert 0 <= x0 < x1 <= 400 and 0 <= y0 < y1 <= 300
        shares.append((x1 - x0) * (y1 - y0) / 120_000)
        ratios.append((x1 - x0) / (y1 - y0))
        corners.append((x0 / max(400 - x1 + x0, 1), y0 / max(300 - y1 + y0, 1)))
    assert 0.39 < min(shares) < 0.41 and 0.9 < max(shares) <= 1.0
    assert 0.74 < min(ratios) < 0.77 and 1.29 < max(ratios) < 1.35
    assert np.abs(np.mean(corners, axis=0) - 0.5).max() < 0.03
    assert abs(np.corrcoef(np.transpose(corners))[0, 1]) < 0.1


def test_the_largest_draw_of_a_place_ends_at_the_borders():
    quarter = iter([0.0, 0.5] * 10 + [0.9999] * 2)  # a square of 173 pixels, as far to the lower right as it can be
    assert random_part(300, 400, (0.25, 1.0), quarter) == (227, 127, 400, 300)


def test_a_shape_that_no_part_fits_shows_its_centre():
    assert random_part(90, 9, (0.9, 1.0), iter([0.5] * 22)) == (0, 39, 9, 51)  # 9 wide, 12 high
    assert random_part(9, 90, (0.9, 1.0), iter([0.5] * 22)) == (39, 0, 51, 9)


@pytest.fixture(scope="module")
def drawn():
    """(2000, 3, 8) parameters of main, view2 and local."""
    image = np.zeros((4, 4, 3), dtype=np.uint8)
    return np.stack([TwoViews(size=4)(image, rng).more["photometric"] for rng in generators(2000)])


def shares(condition):
    return condition.mean(axis=0)


def test_colours_are_drawn_with_the_published_ranges_and_probabilities(drawn):
    assert drawn.dtype == np.float32
    for column, (low, high, neutral) in enumerate([(0.6, 1.4, 1), (0.6, 1.4, 1), (0.8, 1.2, 1), (-0.1, 0.1, 0)]):
        values = drawn[..., column]
        np.testing.assert_allclose(shares(values != neutral), 0.8, atol=0.04)
        assert low <= values.min() < low + 0.01 and high - 0.01 < values.max() <= high + 1e-6
        assert abs(values.mean() - neutral) < 0.01
    np.testing.assert_allclose(shares(drawn[..., 4] == 1), 0.2, atol=0.04)
    np.testing.assert_allclose(shares(drawn[..., 5] > 0), (1.0, 0.1, 0.5), atol=0.04)
    blur = drawn[..., 5][drawn[..., 5] > 0]
    assert 0.1 <= blur.min() < 0.11 and 1.99 < blur.max() <= 2.0 and abs(blur.mean() - 1.05) < 0.05
    np.testing.assert_allclose(shares(drawn[..., 6] == 1), (0.0, 0.2, 0.0), atol=0.04)
    np.testing.assert_allclose(shares(drawn[..., 7] == 1), (0.0, 0.0, 0.5), atol=0.04)
    assert set(np.unique(drawn[..., [4, 6, 7]])) == {0, 1}


def test_what_is_drawn_for_a_view_is_independent_of_the_others(drawn):
    columns = np.delete(drawn.reshape(2000, 24), [6, 7, 15, 22], axis=1)  # those that are always 0
    correlation = np.corrcoef(columns.T) - np.eye(20)
    assert np.abs(correlation).max() < 0.1  # 4.5 sigma


def test_views_depend_on_the_generator_alone():
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    first, again, other = (VIEWS(image, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert np.array_equal(first.image_SS3, again.image_SS3) and first.box == again.box
    assert all(np.array_equal(first.more[name], again.more[name]) for name in first.more)
    assert not np.array_equal(first.more["view2"], other.more["view2"])
    assert first.more["seed"] != other.more["seed"] and first.more["seed"].dtype == np.int64
    seeds = [int(VIEWS(image, rng).more["seed"]) for rng in generators(50)]
    assert min(seeds) >= 0 and max(seeds) > 2**60 and len(set(seeds)) == 50


def test_every_image_takes_the_same_draws_for_the_same_things():
    after, colours = set(), set()
    for height, width in SHAPES.values():
        for options in ({}, {"flip": 0.0, "scale": (0.1, 0.1), "view2_scale": (1.0, 1.0)}):
            rng = np.random.default_rng(3)
            view = TwoViews(size=32, **options)(np.zeros((height, width, 3), dtype=np.uint8), rng)
            after.add(rng.random())
            colours.add(view.more["photometric"].tobytes())
    assert len(after) == 1 and len(colours) == 1


def test_an_image_of_one_pixel_stays_visible():
    view = fixed(scale=(0.1, 0.1))(np.full((1, 1, 3), 255, dtype=np.uint8), np.random.default_rng(0))
    y0, y1, x0, x1 = view.box
    assert (y1 - y0, x1 - x0) == (1, 1) and view.image_SS3.sum() == 3 * 255


@pytest.mark.parametrize("options", [{"scale": (0.0, 1.0)}, {"scale": (2.0, 1.0)}, {"view2_scale": (-1.0, 1.0)}])
def test_a_range_the_wrong_way_round_is_told(options):
    with pytest.raises(DataError, match=f"{next(iter(options))} of the views is .*; wanted a range"):
        TwoViews(size=32, **options)


def test_the_views_reach_the_batch_and_the_device_can_use_them(scenes):
    train = ShardFolder(scenes / "train", "label")
    part = Slice(rank=0, ranks=1, global_batch_size=4)
    batch = next(iter(train_loader(train, VIEWS, seed=0, part=part, workers=0)))
    assert batch["image"].shape == batch["view2"].shape == (4, 3, 32, 32)
    assert batch["photometric"].shape == (4, 3, 8) and batch["photometric"].dtype == torch.float32
    assert batch["main_flip"].dtype == torch.bool and batch["seed"].dtype == torch.int64
    views = torch.stack([batch["image"], batch["view2"], batch["image"]], dim=1) / 255
    coloured = photometric(views.flatten(0, 1), batch["photometric"].flatten(0, 1))
    assert coloured.shape == (12, 3, 32, 32) and coloured.min() >= 0 and coloured.max() <= 1


def test_views_are_views():
    assert isinstance(VIEWS(numbered(40, 40), np.random.default_rng(0)), View)
