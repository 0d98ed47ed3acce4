"""Figures of one class at every threshold; the golden vectors and the pipeline test hold the others."""

import numpy as np
import pytest

from launcher.evaluation.figures import find_figure
from launcher.evaluation.measure import Truth
from launcher.evaluation.sources import ScorePrediction
from launcher.evaluation.thresholds import Thresholds
from launcher.jobs.scores import Scores


def measure_of(key, prob, score_HW, boxes):
    """A measure of one image without smoke."""
    score_1HW = np.array([score_HW], dtype=np.float32)
    scores = Scores(key=key, group=key, class_ids=(1,), cls_probs=(prob,), maps={"x": score_1HW})
    measure = Thresholds()
    truth_HW = np.zeros(score_1HW.shape[1:], dtype=np.uint8)
    measure.add(ScorePrediction(scores, "x", 0.5), Truth(key, key, truth_HW, {"chimney": boxes}))
    return measure


def test_a_regions_gated_area_counts_nothing_where_the_classifier_sees_nothing():
    measure = measure_of("sure", 0.9, [[0.9, 0.1, 0.0, 0.0]], [(0, 1, 0, 2)])
    measure.extend(measure_of("unsure", 0.1, [[0.9, 0.9, 0.0, 0.0]], [(0, 1, 0, 2)]))
    measure.extend(measure_of("no chimney", 0.9, [[0.9, 0.9, 0.9, 0.9]], []))
    figures = measure.figures_at(0.5)
    assert figures["chimney_area"] == pytest.approx((0.5 + 1.0) / 2)
    assert figures["chimney_area_gated"] == pytest.approx((0.5 + 0.0) / 2)


def test_the_gated_area_of_a_region_is_a_figure_that_no_headline_shows():
    figure = find_figure("chimney_area_gated")
    assert figure is not None and figure.heading == "chimney area, gated"
    assert not figure.higher_is_better and not figure.headline and not figure.in_training
    assert find_figure("chimney_gated") is None
