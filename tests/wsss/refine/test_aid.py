import numpy as np
import pytest

from wsss.refine.aid import clip_aid


def picture(height, width):
    return np.zeros((height, width, 3), dtype=np.uint8)


def aided(score, prob, **options):
    scores = np.full((1, 2, 2), score, dtype=np.float32)
    out = clip_aid(picture(2, 2), scores, np.full((1, 2, 2), prob, dtype=np.float16), **options)
    assert out.dtype == np.float32 and out.shape == (1, 2, 2)
    return out[0, 0, 0]


def test_clip_aid_by_hand():
    assert aided(0.25, 0.81) == pytest.approx(0.45, abs=1e-3)  # sqrt(0.25 * 0.81)
    assert aided(0.25, 0.75, mode="mean") == pytest.approx(0.5, abs=1e-3)
    assert aided(0.25, 0.75, mode="mean", weight=0.1) == pytest.approx(0.3, abs=1e-3)
    assert aided(0.25, 0.75, mode="replace") == pytest.approx(0.75, abs=1e-3)
    assert aided(0.25, 1.001, mode="replace") == 1 and aided(0.25, -0.001, mode="replace") == 0  # by rounding
    assert aided(0.25, 0.75, weight=0.0) == pytest.approx(0.25)
    assert aided(0.25, 0.75, weight=1.0) == pytest.approx(0.75, abs=1e-3)
    assert aided(0.0, 0.9) == 0.0 and aided(0.9, 0.0) == 0.0


@pytest.mark.parametrize("mode", ["product", "mean", "replace"])
def test_aided_scores_stay_in_range_at_the_images_size(mode):
    rng = np.random.default_rng(0)
    out = clip_aid(picture(9, 12), rng.random((3, 9, 12)).astype(np.float32), rng.random((3, 2, 4)), mode=mode)
    assert out.shape == (3, 9, 12) and out.min() >= 0 and out.max() <= 1
    assert clip_aid(picture(9, 12), np.zeros((0, 9, 12), np.float32), np.zeros((0, 2, 4)), mode=mode).shape == (
        0,
        9,
        12,
    )


def test_maps_of_other_classes_and_bad_weights_are_refused():
    with pytest.raises(ValueError, match="2 maps of texts for 1 classes"):
        clip_aid(picture(2, 2), np.zeros((1, 2, 2), np.float32), np.zeros((2, 2, 2)))
    with pytest.raises(ValueError, match=r"weight is 1.5; wanted a number in \[0, 1\]"):
        aided(0.2, 0.3, weight=1.5)
    with pytest.raises(ValueError, match="weight is 0.3, which mode replace does not read; leave it out"):
        aided(0.2, 0.3, mode="replace", weight=0.3)
