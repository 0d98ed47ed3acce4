import math

import numpy as np
import pytest
import torch

from wsss.metrics import counts as metrics
from wsss.metrics import image_labels
from wsss.metrics.counts import THRESHOLDS, Counts, count
from wsss.metrics.image_labels import label_f1
from wsss.refine.threshold import mask_of


def counts_of(scores, truths, thresholds=THRESHOLDS):
    pairs = zip(scores, truths, strict=True)
    return Counts.stack([count(torch.as_tensor(s), torch.as_tensor(t), thresholds=thresholds) for s, t in pairs])


def just_above(threshold):
    """Scores > t are scores >= the next number after t."""
    return np.array([np.nextafter(threshold, 2)])


def test_smoke_figures_equal_the_golden_vectors(golden):
    arrays = golden("smoke_p0")
    strict = counts_of(arrays["cam"], arrays["gt"], just_above(float(arrays["thr"])))
    np.testing.assert_allclose(metrics.iou_per_image(strict)[:, 0], arrays["iou_per_image"], atol=1e-9)
    assert metrics.iou_per_image(strict).mean() == pytest.approx(float(arrays["mean_iou"]), abs=1e-9)
    assert metrics.pooled_iou(strict)[0] == pytest.approx(float(arrays["pooled_iou"]), abs=1e-9)

    at_least = counts_of(arrays["cam"], arrays["gt_noignore"], np.array([float(arrays["thr"])]))
    np.testing.assert_allclose(metrics.iou_per_image(at_least)[:, 0], arrays["iou_ge_per_image"], atol=1e-9)

    values, thresholds = metrics.oracle_iou(counts_of(arrays["cam"], arrays["gt_noignore"]))
    np.testing.assert_allclose(values, arrays["oracle_iou"], atol=1e-9)
    np.testing.assert_allclose(thresholds, arrays["oracle_thr"], atol=1e-12)


def test_counts_by_hand():
    score = torch.tensor([[0.0, 0.29], [0.3, 0.9]])
    truth = torch.tensor([[0, 1], [1, 255]])
    at = count(score, truth, thresholds=np.array([0.0, 0.3, 1.0]))
    # the pixel of 0.9 is ignored; at 0.3 only the pixel of exactly 0.3 is predicted
    assert at.tp_NT.tolist() == [[2, 1, 0]]
    assert at.fp_NT.tolist() == [[1, 0, 0]]
    assert at.fn_NT.tolist() == [[0, 1, 2]]
    assert at.pixels_N.tolist() == [3]


def test_counts_equal_a_plain_comparison_at_every_threshold():
    rng = np.random.default_rng(0)
    score, truth = rng.random((9, 7)).round(2).astype(np.float32), rng.choice([0, 1, 255], (9, 7))
    at = count(torch.from_numpy(score), torch.from_numpy(truth))
    for t, threshold in enumerate(THRESHOLDS.astype(np.float32)):
        predicted, valid = score >= threshold, truth != 255
        assert at.tp_NT[0, t] == (predicted & (truth == 1)).sum()
        assert at.fp_NT[0, t] == (predicted & valid & (truth == 0)).sum()


def test_an_image_without_smoke_and_without_prediction_has_iou_zero_not_one():
    at = counts_of([np.zeros((2, 2))], [np.zeros((2, 2), int)], np.array([0.5]))
    assert metrics.iou_per_image(at).tolist() == [[0.0]]


def test_false_alarms_are_measured_on_smoke_free_images_only():
    scores = [np.array([[0.9, 0.9, 0.0, 0.0]]), np.array([[0.9, 0.0, 0.0, 0.0]])]
    truths = [np.array([[1, 0, 0, 0]]), np.array([[0, 0, 0, 0]])]
    at = counts_of(scores, truths, np.array([0.5]))
    assert metrics.false_alarm_area(at).tolist() == [0.25]
    assert math.isnan(metrics.false_alarm_area(at.take(np.array([0])))[0])


def test_precision_recall_and_two_class_miou_by_hand():
    scores = [np.array([[0.9, 0.9, 0.9, 0.0]]), np.array([[0.0, 0.9, 0.0, 0.0]])]
    truths = [np.array([[1, 0, 0, 1]]), np.array([[0, 1, 0, 0]])]
    at = counts_of(scores, truths, np.array([0.5]))
    # pooled: 2 hits, 2 false alarms, 1 miss, 3 of the background right
    assert metrics.precision(at)[0] == pytest.approx(2 / 4)
    assert metrics.recall(at)[0] == pytest.approx(2 / 3)
    assert metrics.pooled_iou(at)[0] == pytest.approx(2 / 5)
    assert metrics.fg_bg_miou(at)[0] == pytest.approx((2 / 5 + 3 / 6) / 2)
    assert metrics.iou_per_image(at)[:, 0].tolist() == [1 / 4, 1]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_score_equal_to_its_threshold_reaches_it_in_counts_and_in_masks_alike(dtype):
    # every second threshold of two digits lies above its float32, so float64 would give other masks than figures
    score_HW = THRESHOLDS.astype(dtype)[None]
    at = count(torch.from_numpy(score_HW), torch.ones(score_HW.shape, dtype=torch.int64))
    for t, threshold in enumerate(THRESHOLDS):
        mask_HW = mask_of(score_HW[None], (1,), threshold=float(threshold))
        assert at.tp_NT[0, t] == mask_HW.sum()
        if dtype == np.float32:
            assert mask_HW[0, t] == 1
            assert mask_of(score_HW[None], (1,), threshold=2.0, bg_threshold=float(threshold))[0, t] == 255


def test_a_nan_score_is_refused_instead_of_counted():
    score_HW = torch.tensor([[0.5, math.nan]])
    with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
        count(score_HW, torch.zeros(1, 2))
    with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
        mask_of(score_HW.numpy()[None], (1,), threshold=0.5)


def test_without_an_image_that_shows_the_class_only_its_false_alarms_are_figures():
    at = counts_of([np.array([[0.9, 0.0]])] * 2, [np.zeros((1, 2), int)] * 2, np.array([0.5]))
    for figure in (metrics.pooled_iou, metrics.fg_bg_miou, metrics.precision, metrics.recall):
        assert np.isnan(figure(at)).all(), figure.__name__
    assert metrics.false_alarm_area(at).tolist() == [0.5]


def test_the_precision_of_no_prediction_is_no_figure_while_recall_and_iou_are_zero():
    at = counts_of([np.zeros((1, 2))], [np.array([[1, 0]])], np.array([0.5]))
    assert np.isnan(metrics.precision(at)).all()
    assert metrics.recall(at).tolist() == metrics.pooled_iou(at).tolist() == [0.0]


def test_an_image_that_is_ignored_everywhere_is_not_one_without_false_alarms():
    fog, clear = np.full((1, 2), 255), np.zeros((1, 2), int)
    at = counts_of([np.array([[0.9, 0.0]])] * 2, [fog, clear], np.array([0.5]))
    assert metrics.false_alarm_area(at).tolist() == [0.5]
    assert np.isnan(metrics.false_alarm_area(at.take(np.array([0])))).all()


def test_score_and_truth_of_different_size_are_refused():
    with pytest.raises(ValueError, match=r"scores \(2, 2\) and truth \(2, 3\)"):
        count(torch.zeros(2, 2), torch.zeros(2, 3))


def test_bootstrap_draws_groups_not_frames():
    # two groups of 50 equal frames: by groups the mean is 0, 1/2 or 1; by frames it would hardly leave 1/2
    values, groups = np.repeat([0.0, 1.0], 50), ["a"] * 50 + ["b"] * 50
    assert metrics.bootstrap_interval(values, groups) == (0.0, 1.0)
    by_frame = metrics.bootstrap_interval(values, [str(n) for n in range(100)])
    assert 0.35 < by_frame[0] < 0.5 < by_frame[1] < 0.65


def test_bootstrap_of_one_group_and_of_nothing():
    assert metrics.bootstrap_interval(np.array([0.2, 0.4]), ["a", "a"]) == pytest.approx((0.3, 0.3))
    assert all(math.isnan(end) for end in metrics.bootstrap_interval(np.array([]), []))


def test_bootstrap_weighs_groups_by_their_size():
    # half of the draws take each group once, whose mean is 1/4 by images and would be 1/2 by groups
    middle = metrics.bootstrap_interval(np.array([0.0, 0.0, 0.0, 1.0]), ["a", "a", "a", "b"], confidence=0.1)
    assert middle == (0.25, 0.25)


def test_average_precision_by_hand():
    # ranks: hit, miss, hit -> (1/1 + 2/3) / 2
    assert image_labels.average_precision(np.array([0.9, 0.5, 0.1]), np.array([True, False, True])) == pytest.approx(
        5 / 6
    )
    # all scores equal: one rank that holds everything, so precision is the share of positives
    assert image_labels.average_precision(np.zeros(4), np.array([True, False, False, False])) == pytest.approx(1 / 4)
    assert math.isnan(image_labels.average_precision(np.array([0.5]), np.array([False])))


def test_image_f1_equals_the_golden_vectors(golden):
    arrays = golden("mlf1_p0")
    f1 = label_f1(torch.from_numpy(arrays["logits"]), torch.from_numpy(arrays["labels"]))
    np.testing.assert_allclose(f1, arrays["f1_per_image"], atol=1e-12)
    assert float(f1.mean()) == pytest.approx(float(arrays["mean_f1"]), abs=1e-12)


def test_image_f1_by_hand():
    logits = torch.tensor([[1.0, 1.0, -1.0], [-1.0, -1.0, -2.0], [0.1, -1, -1], [0.0, -1, -1]])
    labels = torch.tensor([[1, 0, 0], [0, 0, 0], [0, 1, 1], [1, 0, 0]])
    # two predicted, one right; nothing there and nothing predicted is 0; a miss; a logit of 0 predicts nothing
    assert label_f1(logits, labels).tolist() == pytest.approx([2 / 3, 0, 0, 0])
