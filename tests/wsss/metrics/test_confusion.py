import json
import math

import numpy as np
import pytest
import torch

from wsss.metrics.confusion import (
    bootstrap_miou,
    bootstrap_miou_gap,
    class_iou,
    confusion_matrix,
    mean_accuracy,
    mean_iou,
    mean_ious,
    pixel_accuracy,
    sums_at_thresholds,
    sums_by_group,
)
from wsss.metrics.counts import THRESHOLDS
from wsss.refine.threshold import mask_of


def test_confusion_by_hand():
    truth, label = torch.tensor([[0, 1, 1], [255, 2, 1]]), torch.tensor([[0, 1, 2], [1, 255, 1]])
    assert confusion_matrix(truth, label, 3).tolist() == [[1, 0, 0], [0, 2, 1], [0, 0, 0]]
    assert confusion_matrix(truth[:0], label[:0], 3).tolist() == [[0] * 3] * 3


@pytest.mark.parametrize("truth, prediction", [(0, 3), (3, 0), (0, 254), (7, 7), (-1, 0), (0, -1), (255, 3), (3, 255)])
def test_an_id_that_is_no_class_is_refused_instead_of_counted_elsewhere(truth, prediction):
    with pytest.raises(ValueError, match="wanted 0 to 2 or 255"):
        confusion_matrix(torch.tensor([[0, truth]]), torch.tensor([[1, prediction]]), 3)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_the_last_class_is_counted_in_its_own_row_whatever_the_type_of_the_ids(dtype):
    ids = torch.tensor([199, 0, 255], dtype=dtype)
    confusion = confusion_matrix(ids, ids, 200)
    assert confusion[199, 199] == confusion[0, 0] == 1 and confusion.sum() == 2


@pytest.mark.parametrize("case", ["miou_p0", "miou_p1"])
def test_confusion_figures_equal_the_golden_vectors(golden, case):
    arrays = golden(case)
    num_classes = int(arrays["num_classes"])
    truth = torch.from_numpy(arrays["gt"])
    confusion = confusion_matrix(truth, torch.from_numpy(arrays["pred"]), num_classes)
    np.testing.assert_array_equal(confusion.numpy(), arrays["hist"])
    np.testing.assert_allclose(class_iou(confusion).numpy(), arrays["iou"], rtol=1e-12)
    assert mean_iou(confusion) == pytest.approx(float(arrays["miou_gt_present"]), abs=1e-12)
    if len(arrays["sizes"]) > 1:  # of one image, the mean over images is the same thing
        assert mean_iou(confusion) != pytest.approx(float(arrays["miou_per_image_mean_wrong"]), abs=1e-4)
    assert pixel_accuracy(confusion) == pytest.approx(float(arrays["pAcc"]), abs=1e-12)
    assert mean_accuracy(confusion) == pytest.approx(float(arrays["mAcc"]), abs=1e-12)
    ignoring = confusion_matrix(truth, torch.from_numpy(arrays["pseudo_pred"]), num_classes)
    np.testing.assert_allclose(class_iou(ignoring).numpy(), arrays["pseudo_iou"], rtol=1e-12)
    assert mean_iou(ignoring) == pytest.approx(float(arrays["pseudo_miou_gt_present"]), abs=1e-12)
    assert json.loads(str(arrays["meta"]))["case"] == "miou"


def test_confusion_matrices_add_up():
    rng = np.random.default_rng(1)
    truth, predicted = (torch.from_numpy(rng.integers(0, 3, 100)) for _ in range(2))
    whole = confusion_matrix(truth, predicted, 3)
    halves = [confusion_matrix(truth[part], predicted[part], 3) for part in (slice(50), slice(50, None))]
    assert torch.equal(whole, halves[0] + halves[1])


def test_the_interval_draws_groups_and_sums_pixels_before_it_divides():
    # image a: class 1 hit 9 of 9; image b: hit 0 of 1. Drawn aa, ab, ba, bb: IoU of class 1 is 1, .9, .9, 0
    sums = [np.array([[0, 9], [0, 9], [0, 9]]), np.array([[0, 0], [0, 1], [0, 0]])]
    low, high = bootstrap_miou(sums, ["a", "b"], resamples=400)
    assert (low, high) == (0.0, 1.0)
    middle = bootstrap_miou(sums, ["a", "b"], confidence=0.02, resamples=400)
    assert middle == pytest.approx((0.9, 0.9))
    assert bootstrap_miou(sums, ["a", "a"]) == pytest.approx((0.9, 0.9))
    assert all(math.isnan(end) for end in bootstrap_miou([], []))


def random_sums(seed, groups=12, spread=0):
    """Sums of two classes of 100 pixels in each of G groups, as of masks that are wrong in 10 to 50 of them, and of
    another method that is wrong in up to `spread` more."""
    random = np.random.default_rng(seed)
    truth = np.random.default_rng(0).integers(20, 80, groups)
    wrong = np.random.default_rng(1).integers(10, 15, groups) + (random.integers(0, spread, groups) if spread else 0)
    return np.stack(
        [np.array([[100 - t - w, t], [100 - t, t], [100 - t - w, t + w]]) for t, w in zip(truth, wrong, strict=True)]
    )


def test_a_gap_is_that_of_the_same_draws_of_both():
    # image a: ours hits class 1 in 9 of 9, b: in 0 of 1, as above; theirs hits nothing of class 1
    ours = np.array([[[0, 9], [0, 9], [0, 9]], [[0, 0], [0, 1], [0, 0]]])
    theirs = np.array([[[0, 0], [0, 9], [0, 0]], [[0, 0], [0, 1], [0, 0]]])
    assert bootstrap_miou_gap([ours], [theirs], resamples=400) == pytest.approx((0.9, 0.0, 1.0))
    assert bootstrap_miou_gap([ours, theirs], [theirs], resamples=400) == pytest.approx((0.45, 0.0, 0.5))
    assert bootstrap_miou_gap([ours], [ours]) == (0, 0, 0)
    nothing = np.zeros((2, 3, 2), dtype=int)
    assert all(math.isnan(value) for value in bootstrap_miou_gap([nothing], [nothing]))
    with pytest.raises(ValueError, match="counted on other groups or classes"):
        bootstrap_miou_gap([ours], [ours[:1]])


def test_a_gap_has_a_narrower_interval_than_two_methods_drawn_apart():
    worse, better = random_sums(2, spread=3), random_sums(2)
    gap, low, high = bootstrap_miou_gap([better], [worse])
    assert low < gap < high and low > 0
    apart = [bootstrap_miou(list(sums), [str(n) for n in range(12)]) for sums in (better, worse)]
    assert apart[0][0] < apart[1][1]  # these intervals overlap


def test_groups_are_the_sums_of_their_images():
    images = [np.full((3, 2), n) for n in (1, 2, 4)]
    names, sums_G3C = sums_by_group(images, ["b", "a", "b"])
    assert names == ["a", "b"] and sums_G3C.tolist() == [[[2, 2]] * 3, [[5, 5]] * 3]


def test_images_without_a_labelled_pixel_have_no_interval_and_do_not_widen_that_of_others():
    ignored = np.zeros((3, 2), dtype=int)
    assert all(math.isnan(end) for end in bootstrap_miou([ignored, ignored], ["a", "b"]))
    half = np.array([[1, 1], [2, 2], [2, 2]])  # IoU 1/3 of both classes
    assert bootstrap_miou([half, ignored], ["a", "b"]) == pytest.approx((1 / 3, 1 / 3))


def test_a_class_that_a_resample_does_not_show_is_left_out_of_its_mean():
    # class 1 is in image a alone; without it the mean is class 0's alone, which is perfect
    sums = [np.array([[4, 0], [4, 4], [8, 0]]), np.array([[8, 0], [8, 0], [8, 0]])]
    assert bootstrap_miou(sums, ["a", "b"], resamples=400)[1] == 1.0


def test_sums_at_every_threshold_are_those_of_the_masks():
    rng = np.random.default_rng(0)
    truth_HW = torch.from_numpy(rng.choice([0, 1, 2, 3, 255], (9, 7)).astype(np.uint8))
    scores_nHW = rng.integers(0, 101, (2, 9, 7)).astype(np.float32) / 100  # of classes 1 and 3, on the thresholds
    sums_T3C = sums_at_thresholds(torch.from_numpy(scores_nHW), (1, 3), truth_HW, 4)
    for t, threshold in enumerate(THRESHOLDS):
        mask = torch.from_numpy(mask_of(scores_nHW, (1, 3), threshold=threshold))
        confusion_CC = confusion_matrix(truth_HW, mask, 4)
        wanted = [confusion_CC.diagonal(), confusion_CC.sum(1), confusion_CC.sum(0)]
        assert sums_T3C[t].tolist() == torch.stack(wanted).tolist()
        assert mean_ious(sums_T3C)[t] == pytest.approx(mean_iou(confusion_CC))
    nothing = sums_at_thresholds(torch.zeros(0, 9, 7), (), truth_HW, 4)  # an image whose label names no class
    assert (nothing[:, 2, 0] == int((truth_HW != 255).sum())).all() and not nothing[:, 2, 1:].any()


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (torch.zeros(1, 2, 3), r"scores \(1, 2, 3\) and truth \(2, 2\) must have the same size"),
        (torch.full((1, 2, 2), torch.nan), "4 of 4 scores are NaN"),
    ],
)
def test_scores_that_cannot_be_counted_at_thresholds_are_refused(scores, message):
    with pytest.raises(ValueError, match=message):
        sums_at_thresholds(scores, (1,), torch.zeros(2, 2, dtype=torch.uint8), 2)


def test_no_truth_has_no_mean_iou():
    assert np.isnan(mean_ious(np.zeros((2, 3, 2), dtype=np.int64))).all()
