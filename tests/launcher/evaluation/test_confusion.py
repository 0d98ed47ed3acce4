import numpy as np
import pytest

from launcher.evaluation.confusion import Confusion
from launcher.evaluation.measure import Truth
from launcher.evaluation.sources import LabelPrediction, ScorePrediction
from launcher.jobs.scores import Scores
from shards.schema import ClassSet


def add(tally, label, truth, group="group"):
    tally.add(LabelPrediction(label), Truth("a", group, truth, {}))


def class_set(num_classes):
    return ClassSet(name="letters", classes=tuple("abcdefghij"[: num_classes - 1]))


@pytest.mark.parametrize("case", ["miou_p0", "miou_p1"])
def test_figures_equal_the_golden_vectors(golden, case):
    arrays = golden(case)
    tally = Confusion(class_set(int(arrays["num_classes"])))
    first = 0
    for height, width in arrays["sizes"].tolist():
        part = slice(first, first + height * width)
        first += height * width
        truth, label = arrays["gt"][part].reshape(height, width), arrays["pred"][part].reshape(height, width)
        add(tally, label, truth)
    assert tally.confusion_CC.tolist() == arrays["hist"].tolist()
    figures = tally.figures_at(0.3)
    assert figures["miou"] == pytest.approx(float(arrays["miou_gt_present"]), abs=1e-12)
    assert figures["pixel_accuracy"] == pytest.approx(float(arrays["pAcc"]), abs=1e-12)
    iou = np.array(list(figures["class_iou"].values()), dtype=float)  # None becomes NaN
    np.testing.assert_allclose(iou, arrays["iou"], atol=1e-12)
    # one group: every resample is the whole set
    assert figures["miou_interval"] == pytest.approx([figures["miou"]] * 2, abs=1e-12)
    if len(arrays["sizes"]) > 1:
        assert abs(figures["miou"] - float(arrays["miou_per_image_mean_wrong"])) > 1e-3


def test_joined_parts_are_the_whole():
    rng = np.random.default_rng(1)
    pairs = [
        (rng.integers(0, 3, (5, 6)).astype(np.uint8), rng.integers(0, 3, (5, 6)).astype(np.uint8)) for _ in range(6)
    ]
    tallies = [Confusion(class_set(3)) for _ in range(3)]
    for n, (label, truth) in enumerate(pairs):
        add(tallies[0], label, truth, str(n))
        add(tallies[1 + (n >= 2)], label, truth, str(n))
    tallies[1].extend(tallies[2])
    assert tallies[1].figures_at(0.3) == tallies[0].figures_at(0.3) and tallies[0].figures_at(0.3)["images"] == 6


def test_a_mask_of_another_size_than_the_truth_is_refused():
    with pytest.raises(ValueError, match=r"mask \(2, 3\) and truth \(3, 2\)"):
        add(Confusion(class_set(2)), np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8))


def test_truth_that_is_ignored_everywhere_gives_no_figure_and_is_counted():
    tally = Confusion(class_set(3))
    add(tally, np.ones((2, 3), np.uint8), np.full((2, 3), 255, np.uint8))
    figures = tally.figures_at(0.3)
    assert figures["miou"] is figures["pixel_accuracy"] is figures["mean_accuracy"] is None
    assert (
        figures["miou_interval"] == [None, None]
        and figures["miou_groups"] == 0
        and set(figures["class_iou"].values()) == {None}
    )
    assert tally.images_without_truth == 1
    add(tally, np.ones((2, 3), np.uint8), np.ones((2, 3), np.uint8))
    assert tally.figures_at(0.3)["miou"] == 1.0 and tally.figures_at(0.3)["miou_interval"] == [1.0, 1.0]
    assert tally.images_without_truth == 1


def test_each_image_has_the_probability_and_the_label_of_every_class():
    tally = Confusion(ClassSet(name="pets", classes=("cat", "group")))
    scores = Scores(key="a", group="g", class_ids=(2,), cls_probs=(0.25, 0.75), maps={"x": np.ones((1, 1, 1))})
    truth = Truth("a", "g", np.full((1, 1), 2, np.uint8), {}, True, (False, True))
    tally.add(ScorePrediction(scores, "x", 0.5), truth)
    (row,) = tally.rows({"fixed": 0.5})
    assert row == {
        **{"key": "a", "group": "g", "truth_area": 1.0, "iou_fixed": 1.0, "false_area_fixed": 0.0},
        **{"p(cat)": 0.25, "label(cat)": 0, "p(group)": 0.75, "label(group)": 1},
    }


def test_each_image_has_the_mean_iou_of_the_classes_of_its_objects():
    tally = Confusion(class_set(5))
    truth = np.array([[0, 1, 1, 2], [0, 0, 255, 2]], dtype=np.uint8)
    add(tally, np.array([[0, 1, 0, 2], [1, 0, 2, 2]], dtype=np.uint8), truth)
    add(tally, np.array([[1, 0]], dtype=np.uint8), np.array([[0, 0]], dtype=np.uint8))
    add(tally, np.array([[1]], dtype=np.uint8), np.array([[255]], dtype=np.uint8))
    first, clear, unknown = tally.rows({"fixed": 0.5})
    assert first["iou_fixed"] == pytest.approx((1 / 3 + 1) / 2, abs=1e-5)  # class 1: 1 of 3 pixels, class 2: 2 of 2
    assert first["truth_area"] == 4 / 7 and (first["key"], first["group"]) == ("a", "group")
    assert clear["iou_fixed"] is None and clear["truth_area"] == 0
    assert first["false_area_fixed"] == pytest.approx(1 / 7, abs=1e-5) and clear["false_area_fixed"] == 0.5
    assert unknown["iou_fixed"] is unknown["truth_area"] is unknown["false_area_fixed"] is None
    figures = tally.figures_at(0.5)
    assert figures["background_share"] == pytest.approx(5 / 9) and figures["classes_in_truth"] == 3
    add(tally, np.array([[0]], dtype=np.uint8), np.array([[4]], dtype=np.uint8))
    assert tally.figures_at(0.5)["classes_in_truth"] == 4  # of one pixel, too
