"""What the tune split chooses: a threshold of all classes, and a gate."""

import numpy as np
import pytest

from launcher.evaluation.confusion import ClassThresholds
from launcher.evaluation.image_labels import ImageLabels
from launcher.evaluation.measure import Truth
from launcher.evaluation.sources import ScorePrediction
from launcher.evaluation.tuning import best_gate
from launcher.jobs.scores import Scores
from shards.schema import ClassSet

ABC = ClassSet(name="abc", classes=("a", "b"))


def labels_of(probs, present):
    labels = ImageLabels(ABC.classes)
    for n, (prob, there) in enumerate(zip(probs, present, strict=True)):
        labels.count(str(n), str(n), prob, there)
    return labels


def test_the_gate_is_that_of_the_best_mean_f1_and_the_nearest_to_a_half_of_these():
    present = [(True, False), (True, False), (False, True), (False, False)]
    probs = [(0.4, 0.1), (0.3, 0.1), (0.1, 0.35), (0.2, 0.2)]
    assert (
        best_gate(labels_of(probs, present)) == 0.3
    )  # above 0.3 an image of `a` is missed, at 0.2 one too much is seen
    high = [(0.9, 0.1), (0.8, 0.1), (0.1, 0.9), (0.2, 0.2)]
    assert best_gate(labels_of(high, present)) == 0.5  # 0.21 to 0.8 are equally good
    assert best_gate(labels_of(probs, [(False, False)] * 4)) is None


def test_the_threshold_of_all_classes_is_that_of_the_best_miou():
    measure = ClassThresholds(ABC)
    truth_HW = np.array([[1, 2, 0, 255]], dtype=np.uint8)
    maps = np.array([[[0.6, 0.2, 0.3, 0.9]], [[0.1, 0.45, 0.3, 0.9]]], dtype=np.float32)
    scores = Scores(key="x", group="x", class_ids=(1, 2), cls_probs=(0.9, 0.9), maps={"class_map": maps})
    truth = Truth("x", "x", truth_HW, {}, True, (True, True))
    measure.add(ScorePrediction(scores, "class_map", 0.3), truth)
    assert measure.best_threshold() == pytest.approx(0.31)  # the first at which the background is no longer `a`
    other = ClassThresholds(ABC)
    assert other.best_threshold() is None
    other.extend(measure)
    assert other.best_threshold() == pytest.approx(0.31)
