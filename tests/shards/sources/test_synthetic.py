import numpy as np
import pytest

from shards.image_bytes import decode_image
from shards.schema import DataError
from shards.sources.synthetic import Synthetic, draw_clouds, draw_plume


def shares(cooccurrence):
    scenes = Synthetic(split="val", num_images=300, size=32, cooccurrence=cooccurrence, with_masks=True)
    smoke = np.array([bool(s.image_label) for s in scenes])
    chimney = np.array([bool(s.regions["chimney"]) for s in scenes])
    return chimney[smoke].mean(), chimney[~smoke].mean()


@pytest.mark.parametrize("cooccurrence", [0.0, 0.5, 0.9])
def test_cooccurrence_is_the_chance_that_chimney_and_smoke_agree(cooccurrence):
    with_smoke, without = shares(cooccurrence)
    assert with_smoke == pytest.approx(cooccurrence, abs=0.09)
    assert without == pytest.approx(1 - cooccurrence, abs=0.09)


def test_masks_agree_with_labels_and_mark_where_the_plume_changed_the_image():
    scenes = list(Synthetic(split="val", num_images=60, size=64, with_masks=True))
    shown = [s for s in scenes if s.image_label]
    assert all(s.mask.any() for s in shown) and not any(s.mask.any() for s in scenes if not s.image_label)
    area = np.mean([s.mask.mean() for s in shown])
    assert 0.02 < area < 0.3


def test_smoke_is_warm_and_darker_than_clouds_which_are_neutral():
    plumes, clouds = [], []
    for seed in range(20):
        sky_HW3 = np.full((64, 64, 3), 0.5)
        opacity_HW = draw_plume(sky_HW3, (50, 32), np.random.default_rng(seed))
        plumes.append(sky_HW3[opacity_HW > 0.6].mean(0))
        sky_HW3 = np.full((64, 64, 3), 0.5)
        draw_clouds(sky_HW3, 48, np.random.default_rng(seed))
        assert np.ptp(sky_HW3, axis=2).max() < 1e-9
        clouds.append(sky_HW3.max())
    plumes_N3 = np.array(plumes)
    assert (plumes_N3[:, 0] / plumes_N3[:, 2] > 1.05).all()
    assert plumes_N3.mean() < np.mean(clouds) - 0.1


def test_a_scene_is_a_function_of_seed_split_and_number_alone():
    scenes = Synthetic(split="train", num_images=8, size=32)
    again = Synthetic(split="train", num_images=80, size=32)
    assert all(scenes[n] == again[n] for n in (0, 5, 7))
    assert scenes[0].image != Synthetic(split="val", num_images=8, size=32)[0].image
    assert scenes[0].image != Synthetic(split="train", num_images=8, size=32, seed=1)[0].image


def test_frames_of_a_scene_share_a_group_and_groups_name_their_split():
    scenes = Synthetic(split="train", num_images=9, size=32)
    assert scenes.groups() == [scenes[n].group for n in range(9)]
    assert len(set(scenes.groups())) == 3 and all(g.startswith("train-") for g in scenes.groups())


def test_label_only_scenes_know_no_positions():
    sample = Synthetic(split="train", num_images=1, size=32)[0]
    assert sample.mask is None and not sample.regions
    assert decode_image(sample.image, "").shape == (32, 32, 3)


@pytest.mark.parametrize("wrong", [{"cooccurrence": 1.5}, {"smoke_rate": -0.1}, {"size": 8}])
def test_impossible_scenes_are_refused(wrong):
    with pytest.raises(DataError, match=next(iter(wrong))):
        Synthetic(split="train", num_images=1, **wrong)
