import numpy as np
import pytest
from support.predictions import settings

from launcher.config.sections import SegmentConfig
from launcher.predict.masks import boxes_of, describe_classes, predict_frame
from launcher.predict.views import Looked
from shards.schema import DataError

CLASSES = ("cat", "dog")


def predict(cam, probs, **further):
    image = np.zeros((2, 4, 3), np.uint8)
    looked = Looked(np.array(cam, np.float32), np.array(probs), np.ones(2))
    return predict_frame(image, looked, settings(**further), CLASSES, SegmentConfig())


CAM = [[[0.9, 0.9, 0.2, 0.0]] * 2, [[0.3, 0.95, 0.6, 0.6]] * 2]


def test_a_class_is_drawn_where_its_score_is_highest_and_its_probability_passes_the_gate():
    assert predict(CAM, [0.9, 0.9]).mask.tolist() == [[1, 2, 2, 2]] * 2
    assert predict(CAM, [0.9, 0.4]).mask.tolist() == [[1, 1, 0, 0]] * 2  # no dog here
    assert predict(CAM, [0.1, 0.1]).mask.tolist() == [[0, 0, 0, 0]] * 2
    assert predict(CAM, [0.1, 0.1], gate=0.0).mask.tolist() == [[1, 2, 2, 2]] * 2
    assert predict(CAM, [0.9, 0.9], threshold=0.0).mask.tolist() == [[1, 2, 2, 2]] * 2


def test_without_a_threshold_a_class_is_where_it_is_likelier_than_the_background():
    probs = [[[0.5, 0.3, 0.2, 0.0]] * 2, [[0.3, 0.3, 0.6, 0.4]] * 2]
    assert predict(probs, [0.1, 0.1], kind="seg", threshold=None, gate=0.0).mask.tolist() == [[1, 0, 2, 0]] * 2


def test_what_is_ignored_is_255_and_counts_for_no_area():
    kept = np.array([[False, True, True, True]] * 2)
    found = predict(CAM, [0.9, 0.9], kept=kept)
    assert found.mask.tolist() == [[255, 2, 2, 2]] * 2
    cat, dog = describe_classes(found)
    assert (cat["area_px"], cat["mean_score"], cat["boxes"]) == (0, None, [])
    assert (dog["area_px"], dog["area_percent"], dog["boxes"]) == (6, 100.0, [[1, 0, 4, 2]])
    assert dog["mean_score"] == pytest.approx((0.95 + 0.6 + 0.6) / 3, abs=1e-4)
    with pytest.raises(DataError, match=r"frame is 2 x 4, --ignore .* is 3 x 4 \(height x width\)"):
        predict(CAM, [0.9, 0.9], kept=np.ones((3, 4), bool))


def test_boxes_are_of_the_components_the_largest_first():
    inside = np.zeros((6, 8), bool)
    inside[0, 0] = inside[2:5, 3:8] = True
    assert boxes_of(inside) == (2, [[3, 2, 8, 5], [0, 0, 1, 1]])
