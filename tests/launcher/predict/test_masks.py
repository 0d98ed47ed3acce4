import numpy as np
import pytest
from support.predictions import settings

from launcher.config.sections import SegmentConfig
from launcher.predict import masks
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
    assert predict(CAM, [0.9, 0.5]).shown == (1, 2)  # a gate is reached by what equals it
    assert predict(CAM, [0.1, 0.1]).mask.tolist() == [[0, 0, 0, 0]] * 2
    assert predict(CAM, [0.1, 0.1], gate=0.0).mask.tolist() == [[1, 2, 2, 2]] * 2
    assert predict(CAM, [0.9, 0.9], threshold=0.7).mask.tolist() == [[1, 2, 0, 0]] * 2
    assert predict(CAM, [0.9, 0.9], threshold=0.0).mask.tolist() == [[1, 2, 2, 2]] * 2


def test_without_a_threshold_a_class_is_where_it_is_likelier_than_the_background():
    probs = [[[0.5, 0.3, 0.2, 0.0]] * 2, [[0.3, 0.3, 0.6, 0.4]] * 2]
    assert predict(probs, [0.1, 0.1], kind="seg", threshold=None, gate=0.0).mask.tolist() == [[1, 0, 2, 0]] * 2


def test_what_is_ignored_is_255_and_counts_for_no_area():
    kept = np.array([[False, True, True, True]] * 2)
    found = predict(CAM, [0.9, 0.9], kept=kept)
    assert found.mask.tolist() == [[255, 2, 2, 2]] * 2 and not found.scores[..., 0].any()
    cat, dog = describe_classes(found)
    assert (cat["area_px"], cat["mean_score"], cat["boxes"]) == (0, None, [])
    assert (dog["area_px"], dog["area_percent"], dog["boxes"]) == (6, 100.0, [[1, 0, 4, 2]])
    assert dog["mean_score"] == pytest.approx((0.95 + 0.6 + 0.6) / 3, abs=1e-4)
    nothing = describe_classes(predict(CAM, [0.9, 0.9], kept=np.zeros((2, 4), bool)))
    assert [of_class["area_percent"] for of_class in nothing] == [0, 0]  # of no pixel
    with pytest.raises(DataError, match=r"frame is 2 x 4, --ignore .* is 3 x 4 \(height x width\)"):
        predict(CAM, [0.9, 0.9], kept=np.ones((3, 4), bool))


def test_scores_are_refined_at_no_more_than_a_length_and_come_back_at_the_size_of_the_frame(monkeypatch):
    asked = []

    def refine(chain, image, scores, cues):
        asked.append((chain, image.shape, scores.shape))
        return 1 - scores

    monkeypatch.setattr(masks, "REFINED_PX", 2)
    monkeypatch.setattr(masks, "run_chain", refine)
    found = predict(CAM, [0.4, 0.9], chain=("crf",), refine="crf")
    assert asked == [(("crf",), (1, 2, 3), (1, 1, 2))]
    assert found.scores.shape == (1, 2, 4) and found.scores[0, 0, 0] == pytest.approx(1 - (0.3 + 0.95) / 2)
    assert predict(CAM, [0.1, 0.1], chain=("crf",)).scores.shape == (0, 2, 4)
    assert predict(CAM, [0.9, 0.9]).scores[0].tolist() == np.float32(CAM[0]).tolist() and len(asked) == 1
    monkeypatch.setattr(masks, "REFINED_PX", 1)  # the short side of a thin frame keeps a pixel
    assert predict(CAM, [0.4, 0.9], chain=("crf",)).scores.shape == (1, 2, 4) and asked[-1][1] == (1, 1, 3)


def test_maps_that_are_probabilities_are_refined_beside_their_background_by_the_crf_of_segment(monkeypatch):
    asked = []

    def field(image, probs, **options):
        asked.append((image.shape, probs.round(4).tolist(), options))
        return probs[::-1]

    monkeypatch.setattr(masks, "mean_field", field)
    cam = [[[0.5] * 4] * 2, [[0.25] * 4] * 2]
    found = predict(cam, [0.9, 0.9], kind="seg", threshold=None, chain=("crf",), refine="crf")
    probs = [[[value] * 4] * 2 for value in (0.25, 0.5, 0.25)]
    assert asked == [((2, 4, 3), probs, SegmentConfig().mean_field.model_dump())]
    assert found.scores[:, 0, 0].tolist() == [0.5, 0.25]


def test_boxes_are_of_the_components_the_largest_first():
    inside = np.zeros((6, 8), bool)
    inside[0, 0] = inside[2:5, 3:8] = True
    assert boxes_of(inside) == (2, [[3, 2, 8, 5], [0, 0, 1, 1]])
    assert boxes_of(np.eye(4, dtype=bool)) == (1, [[0, 0, 4, 4]])  # corners touch
    assert boxes_of(np.arange(24).reshape(1, 24) % 2 == 0) == (12, [[x, 0, x + 1, 1] for x in range(0, 20, 2)])
