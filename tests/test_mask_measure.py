import math

import numpy as np
import pytest
import torch

from launcher.mask_measure import MaskTally, bootstrap_miou, confusion_of, label_f1
from shards.schema import ClassSet
from wsss import metrics


def class_set(num_classes):
    return ClassSet(name="letters", classes=tuple("abcdefghij"[: num_classes - 1]))


@pytest.mark.parametrize("case", ["miou_p0", "miou_p1"])
def test_figures_equal_the_golden_vectors(golden, case):
    arrays = golden(case)
    tally = MaskTally(class_set(int(arrays["num_classes"])))
    first = 0
    for height, width in arrays["sizes"].tolist():
        part = slice(first, first + height * width)
        first += height * width
        truth, label = arrays["gt"][part].reshape(height, width), arrays["pred"][part].reshape(height, width)
        tally.add(label, truth, "group")
    assert tally.confusion_CC.tolist() == arrays["hist"].tolist()
    figures = tally.figures()
    assert figures["miou"] == pytest.approx(float(arrays["miou_gt_present"]), abs=1e-12)
    assert figures["pixel_accuracy"] == pytest.approx(float(arrays["pAcc"]), abs=1e-12)
    np.testing.assert_allclose(list(figures["class_iou"].values()), arrays["iou"], atol=1e-12)
    # one group: every resample is the whole set
    assert figures["miou_interval"] == pytest.approx([figures["miou"]] * 2, abs=1e-12)
    if len(arrays["sizes"]) > 1:
        assert abs(figures["miou"] - float(arrays["miou_per_image_mean_wrong"])) > 1e-3


def test_confusion_by_hand_and_as_the_metric_counts_it():
    truth, label = torch.tensor([[0, 1, 1], [255, 2, 1]]), torch.tensor([[0, 1, 2], [1, 255, 1]])
    assert confusion_of(truth, label, 3).tolist() == [[1, 0, 0], [0, 2, 1], [0, 0, 0]]
    assert confusion_of(truth[:0], label[:0], 3).tolist() == [[0] * 3] * 3
    rng = np.random.default_rng(0)
    truth, label = (torch.from_numpy(rng.choice([0, 1, 2, 3, 255], (40, 50)).astype(np.uint8)) for _ in range(2))
    assert torch.equal(confusion_of(truth, label, 4), metrics.confusion_matrix(truth, label, 4))


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


def test_the_interval_draws_groups_and_sums_pixels_before_it_divides():
    # image a: class 1 hit 9 of 9; image b: hit 0 of 1. Drawn aa, ab, ba, bb: IoU of class 1 is 1, .9, .9, 0
    sums = [np.array([[0, 9], [0, 9], [0, 9]]), np.array([[0, 0], [0, 1], [0, 0]])]
    low, high = bootstrap_miou(sums, ["a", "b"], resamples=400)
    assert (low, high) == (0.0, 1.0)
    middle = bootstrap_miou(sums, ["a", "b"], confidence=0.02, resamples=400)
    assert middle == pytest.approx((0.9, 0.9))
    assert bootstrap_miou(sums, ["a", "a"]) == pytest.approx((0.9, 0.9))
    assert all(math.isnan(end) for end in bootstrap_miou([], []))


def test_a_class_that_a_resample_does_not_show_is_left_out_of_its_mean():
    # class 1 is in image a alone; without it the mean is class 0's alone, which is perfect
    sums = [np.array([[4, 0], [4, 4], [8, 0]]), np.array([[8, 0], [8, 0], [8, 0]])]
    assert bootstrap_miou(sums, ["a", "b"], resamples=400)[1] == 1.0


def test_joined_parts_are_the_whole():
    rng = np.random.default_rng(1)
    pairs = [
        (rng.integers(0, 3, (5, 6)).astype(np.uint8), rng.integers(0, 3, (5, 6)).astype(np.uint8)) for _ in range(6)
    ]
    tallies = [MaskTally(class_set(3)) for _ in range(3)]
    for n, (label, truth) in enumerate(pairs):
        tallies[0].add(label, truth, str(n))
        tallies[1 + (n >= 2)].add(label, truth, str(n))
    tallies[1].extend(tallies[2])
    assert tallies[1].figures() == tallies[0].figures() and tallies[0].figures()["images"] == 6


def test_a_mask_of_another_size_than_the_truth_is_refused():
    with pytest.raises(ValueError, match=r"mask \(2, 3\) and truth \(3, 2\)"):
        MaskTally(class_set(2)).add(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8), "a")
