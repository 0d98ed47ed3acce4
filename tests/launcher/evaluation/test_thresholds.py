"""Figures of one class at every threshold; the golden vectors and the pipeline test hold the others."""

import numpy as np
import pytest

from launcher.evaluation.figures import find_figure
from launcher.evaluation.measure import Truth
from launcher.evaluation.sources import ScorePrediction
from launcher.evaluation.thresholds import Thresholds
from launcher.jobs.scores import Scores


def measure_of(key, prob, score_HW, boxes, truth=0, labelled=False):
    """A measure of one image, without smoke if its truth is not said."""
    score_1HW = np.array([score_HW], dtype=np.float32)
    scores = Scores(key=key, group=key, class_ids=(1,), cls_probs=(prob,), maps={"x": score_1HW})
    measure = Thresholds()
    truth_HW = np.full(score_1HW.shape[1:], truth, dtype=np.uint8)
    measure.add(ScorePrediction(scores, "x", 0.5), Truth(key, key, truth_HW, {"chimney": boxes}, labelled))
    return measure


def test_a_regions_gated_area_counts_nothing_where_the_classifier_sees_nothing():
    measure = measure_of("sure", 0.5, [[0.9, 0.1, 0.0, 0.0]], [(0, 1, 0, 2), (0, 1, 1, 2)])  # they overlap
    measure.extend(measure_of("unsure", 0.1, [[0.9, 0.9, 0.0, 0.0]], [(0, 1, 0, 2)]))
    measure.extend(measure_of("no chimney", 0.9, [[0.9, 0.9, 0.9, 0.9]], []))
    figures = measure.figures_at(0.5)
    assert figures["chimney_area"] == pytest.approx((0.5 + 1.0) / 2)
    assert figures["chimney_area_gated"] == pytest.approx((0.5 + 0.0) / 2)
    assert measure.figures_at(0.05)["chimney_area"] == 1.0 and measure.figures_at(0.95)["chimney_area"] == 0.0


def test_the_best_threshold_is_that_of_the_highest_mean_over_the_images_that_show_smoke():
    measure = measure_of("a", 0.9, [[0.8, 0.305]], [], truth=[[1, 0]])  # IoU 1/2 below 0.31, then 1, from 0.8 on 0
    measure.extend(measure_of("b", 0.9, [[0.505, 0.1]], [], truth=[[1, 0]]))  # 1 up to 0.5
    measure.extend(measure_of("c", 0.1, [[0.9, 0.0]], [], truth=[[1, 1]]))  # 1/2
    measure.extend(measure_of("clear", 0.9, [[0.3, 0.3]], []))
    best = measure.best()
    assert best == (pytest.approx(0.31), pytest.approx(2.5 / 3))
    assert measure.figures_at(0.31)["per_image_iou_gated"] == pytest.approx(2 / 3)  # `c` is not seen
    bounds = measure.bounds_and_curve()
    assert bounds["best_on_val"] == {"threshold": best.threshold, "per_image_iou": best.value}
    assert (bounds["images"], bounds["images_with_class"], bounds["groups"]) == (4, 3, 4)
    assert bounds["oracle_per_image_iou"] == 1.0
    assert measure.decisions()[1].tolist() == [[True], [True], [True], [False]]  # masks tell what no label names
    curve = {name: value_T[31] for name, value_T in bounds["curve"].items()}
    assert curve == {
        "per_image_iou": 0.83333,
        "pooled_iou": 0.75,
        "precision": 1.0,
        "recall": 0.75,
        "false_alarm_area": 0,
    }


def test_the_gated_area_of_a_region_is_a_figure_that_no_headline_shows():
    figure = find_figure("chimney_area_gated")
    assert figure is not None and figure.heading == "chimney area, gated"
    assert not figure.higher_is_better and not figure.headline and not figure.in_training
    assert find_figure("chimney_gated") is None


def test_images_without_smoke_tune_nothing_and_have_false_alarms_alone():
    measure = measure_of("a", 0.1, [[0.9, 0.1]], [])
    measure.extend(measure_of("b", 0.9, [[0.0, 0.0]], []))
    assert measure.best() is None
    figures = measure.figures_at(0.5)
    assert figures.pop("per_image_iou_groups") == 0 and "chimney_area" not in figures  # no image has a box
    shown = {name for name, value in figures.items() if value not in (None, [None, None])}
    assert shown == {"threshold", "false_alarm_area", "false_alarm_area_gated"}
    assert figures["false_alarm_area"] == 0.25 and figures["per_image_iou_interval"] == [None, None]
    bounds = measure.bounds_and_curve()
    assert bounds["best_on_val"] == {"threshold": None, "per_image_iou": None}
    assert bounds["oracle_per_image_iou"] is None and set(bounds["curve"]["recall"]) == {None}
    of_labels = {"average_precision": None, "class_f1": None, "accuracy": 0.5, "calibration_error": 0.5}
    assert measure.classification() == of_labels
    rows = list(measure.rows({"fixed": 0.5}))
    assert [(row["truth_area"], row["iou_fixed"], row["false_area_fixed"]) for row in rows] == [
        (0.0, None, 0.5),
        (0.0, None, 0.0),
    ]


@pytest.mark.parametrize(("truth", "labelled"), [(255, False), (255, True), (0, True)])
def test_an_image_whose_mask_says_nothing_counts_in_no_figure_of_maps_but_in_those_of_labels(truth, labelled):
    measure = measure_of("smoke", 0.9, [[0.9, 0.1]], [], truth=1, labelled=True)
    measure.extend(measure_of("clear", 0.1, [[0.9, 0.1]], []))
    alone, before = measure.figures_at(0.5), measure.bounds_and_curve()
    measure.extend(measure_of("said nothing", 0.9, [[0.9, 0.9]], [], truth=truth, labelled=labelled))
    assert measure.figures_at(0.5) == alone and alone["false_alarm_area"] == 0.5
    assert measure.bounds_and_curve() == {**before, "images": 3, "groups": 3}
    assert measure.images_without_truth == 1
    assert measure.classification()["accuracy"] == (1.0 if labelled else pytest.approx(2 / 3))
    last = list(measure.rows({"fixed": 0.5}))[-1]
    assert last["truth_area"] is last["iou_fixed"] is last["false_area_fixed"] is None


def test_a_box_without_a_background_pixel_is_left_out_of_its_region():
    measure = measure_of("hidden", 0.9, [[0.0, 0.0]], [(0, 1, 0, 2)], truth=1)
    measure.extend(measure_of("seen", 0.9, [[0.9, 0.9]], [(0, 1, 0, 2)]))
    assert measure.figures_at(0.5)["chimney_area"] == 1.0
