import pytest

from launcher.evaluation.protocol import describe_crf, describe_labels, describe_scores, join_options

CAMS = {
    "checkpoint": "step_0000004",
    "ema_decay": None,
    "image_size": 224,
    "cam": {
        **{"kinds": ["grad"], "layers": [-1], "scales": [0.5, 1.0], "flip": True, "fuse": "mean", "pad": "resize"},
        **{"window_px": None, "classes": "present"},
    },
}
SIZE = "image squashed to 224 px, scales 0.5, 1 + flip"
VIEWS = f"{SIZE}, fuse mean, sides resized, maps of the classes of the image label alone, scores resized to the image"
ORIGIN = "split val, checkpoint step_0000004, training seed 3"


def test_the_line_of_cams_says_views_split_checkpoint_and_seed():
    assert describe_scores(CAMS, "val", 3) == f"{VIEWS}, {ORIGIN}"
    every = {**CAMS, "cam": {**CAMS["cam"], "classes": "all"}}
    assert ", maps of all classes, scores" in describe_scores(every, "val", 3)
    summed = {**CAMS["cam"], "scales": [1.0], "flip": False, "fuse": "toco"}
    assert describe_scores({**CAMS, "cam": summed}, "val", 3).startswith(
        "image squashed to 224 px, scales 1, fuse toco, sides resized, maps"
    )
    padded = {**CAMS, "cam": {**CAMS["cam"], "pad": "pad"}, "ema_decay": 0.999}
    assert "fuse mean, sides padded, maps" in describe_scores(padded, "val", 3)
    assert "step_0000004 (weights averaged, ema_decay 0.999), training" in describe_scores(padded, "val", 3)
    windows = {**CAMS, "cam": {**CAMS["cam"], "window_px": 96, "layers": [-1, -2]}}
    assert "through windows of 96 px, scales 0.5, 1 + flip, fuse mean, sides resized, layers -1, -2" in describe_scores(
        windows, "val", 3
    )


def test_the_line_of_refined_scores_names_the_chain_with_its_options_its_cues_and_the_thresholds():
    cues = {"kind": "sam", "fingerprint": "f", "weights": "0123", "variant": "vit_h", "points_per_side": 32}
    texts = {"kind": "clip", "fingerprint": "f", "weights": "0123", "templates": ["a photo of {}"], "size": 336}
    refined = {
        **CAMS,
        "chain": [{"name": "crf", "gamma": 2.0}, {"name": "sam", "iou": 0.5}, {"name": "clip"}, {"name": "par"}],
        "cues": {"sam": cues, "clip": texts},
        "threshold": 0.4,
        "bg_threshold": 0.1,
    }
    assert describe_scores(refined, "val", 3) == (
        f"{VIEWS}, refined by crf (gamma 2), then sam (iou 0.5; cues variant vit_h, points_per_side 32), then "
        f"clip (cues size 336), then par (its defaults), stored masks at >= 0.4, ignored from 0.1, {ORIGIN}"
    )
    plain = describe_scores({**refined, "chain": [], "bg_threshold": None}, "val", 3)
    assert plain == f"{VIEWS}, not refined, stored masks at >= 0.4, {ORIGIN}"


def test_the_line_of_a_crf_of_proposed_classes_says_the_mass_that_it_leaves_out():
    settings = {"crf": True, "crf_classes": "proposed", "mean_field": {"iterations": 10}}
    said = "CRF of proposed classes (iterations 10), left-out mass 2.00 % on average, at most 3.50 % of an image"
    assert describe_crf(settings, [0.005, 0.035]) == said
    assert describe_crf(settings).endswith("left-out mass not recorded")
    assert describe_crf({**settings, "crf_classes": "all"}) == "CRF of all classes (iterations 10)"


LABELS = {
    **{"checkpoint": "step_0000004", "ema_decay": None, "precision": "bf16"},
    **{"image_size": 224, "cam_threshold": 0.45},
}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rule": "voc", "scales": [1.0, 1.5], "flip": True}, "scales 1, 1.5 (maxed) + flip (summed), argmax"),
        ({"rule": "coco", "scales": [1.0, 1.5], "flip": True}, "scales 1, 1.5 (summed) + flip (maxed), argmax"),
        ({"rule": "coco", "scales": [1.0], "flip": False}, "scales 1, no flip, argmax"),
    ],
)
def test_the_line_of_label_maps_says_what_is_summed_and_what_is_maxed(settings, said):
    line = describe_labels({**LABELS, "segment": {**settings, "size": "native", "crf": False}}, "png", "val", 3)
    assert line == f"image at its own size, {said} over all classes, no CRF, bf16, {ORIGIN}"


def test_the_line_of_the_label_maps_of_cams_says_by_which_rule_they_were_fused():
    rule = {"scales": [1.0], "flip": False, "fuse": "mean", "pad": "resize"}
    line = describe_labels({**LABELS, "segment": {"size": "native"}, "cam": rule}, "cam.png", "val", 3)
    assert ", scales 1, fuse mean, sides resized, resized to the image, background at <= 0.45, no CRF, bf16, " in line


def test_options_are_words_whatever_is_in_them():
    options = {"a": [0.5, 1.0], "b": {"c": 2.0, "d": "e"}, "f": True, "g": None}
    assert join_options(options) == "a [0.5, 1], b (c 2, d e), f True, g None"
