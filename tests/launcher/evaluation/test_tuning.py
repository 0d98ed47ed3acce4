"""What the tune split chooses: a threshold of all classes, and a gate."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.places import ROOT

from launcher.config.file import load_config
from launcher.evaluation import tuning
from launcher.evaluation.confusion import ClassThresholds
from launcher.evaluation.image_labels import ImageLabels
from launcher.evaluation.measure import Best, Truth
from launcher.evaluation.sources import LabelSource, ScorePrediction, ScoreSource
from launcher.evaluation.table import ask_for, describe_best
from launcher.evaluation.tuning import NO_MAPS, Tuned, best_gate, tune
from launcher.jobs.scores import Scores
from shards.schema import ClassSet

ABC = ClassSet(name="abc", classes=("a", "b"))
INFER = "wsss infer RUN --split tune data.tune=tune"


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
    best = measure.best()
    assert best == (pytest.approx(0.31), 1.0)  # the first at which the background is no longer `a`
    other = ClassThresholds(ABC)
    other.add(ScorePrediction(scores, "class_map", 0.3), Truth("y", "y", truth_HW // 255 * 255, {}, True, (True, True)))
    assert other.best() is None  # classes are predicted, and none is shown
    other.add(ScorePrediction(scores, "class_map", 0.3), Truth("z", "z", truth_HW % 2, {}, True, (True, False)))
    assert other.best() is not None  # the first class alone
    other = ClassThresholds(ABC)
    other.extend(measure)
    assert other.best() == best


def evaluated(values, shown=20, **chains):
    """What evaluation.json says of sources with these figures on tune, all at 0.42, and half as good on val."""
    config = load_config(ROOT / "configs/demo/student.yaml")
    tuned = Tuned(thresholds=dict.fromkeys(values, 0.42), values=values, figure="per_image_iou", shown=shown)
    at = {name: {"threshold": 0.42, "per_image_iou": value / 2} for name, value in values.items()}
    sources = {name: {"tuned": at[name], "fixed": at[name], "chain": chains.get(name, [])} for name in values}
    return {"tune": tuned.about(config), "sources": sources}


def test_the_best_source_is_that_of_tune_whatever_val_says_and_how_to_ask_for_it_is_said():
    report = evaluated({"grad": 0.5, "class_map": 0.6, "project": 0.6})
    assert report["tune"]["best"] == "class_map"
    report["sources"]["grad"]["tuned"]["per_image_iou"] = 0.9
    report["sources"]["class_map"]["tuned"] |= {"per_image_iou_interval": [0.2, 0.4], "per_image_iou_groups": 8}
    first, use = describe_best(report)
    assert first == (
        "best on tune: class_map, threshold 0.42: per-image IoU 60.0 there, on val 30.0 [20.0, 40.0] "
        "of 8 groups (the others on tune: project 60.0, grad 50.0)"
    )
    assert use.endswith(
        "--kind class_map; wsss refine RUN 'refine.cams=[class_map]' 'refine.chain=[]' refine.threshold=0.42"
    )
    shorter = ["best on tune, too: per-image IoU 60.0 there (project 60.0, grad 50.0)", use]
    assert describe_best(report, ("class_map", "tuned")) == shorter
    assert describe_best(report, ("class_map", "fixed")) == describe_best(report, ("grad", "tuned")) == [first, use]
    report["sources"]["segments"] = report["sources"]["grad"]
    assert describe_best(report)[1] == "  not compared, since there are no outputs for tune: segments"
    report["sources"]["class_map"]["tuned"] = {"threshold": 0.01, "per_image_iou": 0.1}
    assert describe_best(report) == []  # nothing was found


@pytest.mark.parametrize(
    ("name", "chain", "said"),
    [
        (
            "grad+crf",
            ["crf"],
            "wsss predict ... --kind grad --refine crf; wsss refine RUN 'refine.cams=[grad]' refine.th",
        ),
        ("grad+sam+crf", ["sam", "crf"], "  to use it: wsss refine RUN 'refine.cams=[grad]' refine.threshold=0.42"),
        ("grad+threshold", [], "--kind grad; wsss refine RUN 'refine.cams=[grad]' 'refine.chain=[]' refine.threshold"),
        ("grad+mine", ["crf"], ""),
        ("grad@whole", [], ""),
    ],
)
def test_only_what_options_alone_give_is_told_as_options(name, chain, said):
    lines = describe_best(evaluated({name: 0.5, "other": 0.4}, **{name: [{"name": step} for step in chain]}))
    assert said in lines[-1] if said else len(lines) == 1
    assert ask_for("segments", [], {"miou": 0.5}) == ""  # label maps have no threshold to ask for


def test_few_images_of_tune_choose_no_source_and_one_source_is_no_choice():
    assert evaluated({"grad": 0.5, "project": 0.4}, shown=19)["tune"]["best"] is None
    assert describe_best(evaluated({"grad": 0.5, "project": 0.4}, shown=19)) == []
    assert describe_best(evaluated({"grad": 0.5})) == describe_best({"sources": {}, "tune": {"images_shown": 30}}) == []


def test_a_split_that_chose_a_gate_alone_has_no_best_source():
    config = load_config(ROOT / "configs/demo/student.yaml")
    assert Tuned(shown=30, figure="miou").about(config) is None
    assert Tuned(shown=30, gate=0.4).about(config)["best"] is None


CAMS, OTHERS = ScoreSource("grad", Path("cams/tune"), "grad"), ScoreSource("mine", Path("cams/tune"), "mine")
MASKS = LabelSource("segments", Path("segments/tune"), "png")


@pytest.fixture
def tuned(monkeypatch):
    """What holds masks or labels, what there is of tune, what it would choose -> what is tuned, and what is counted."""

    def make(tune_holds, there, best=None, figure="miou", val_holds="pixel", folder="tune", maps=0.5):
        index = SimpleNamespace(supervision=tune_holds, classes=["smoke"])
        shards = SimpleNamespace(index=index, folder=folder, image_label_NK=np.array([[1, 1], [0, 0], [0, 1]]))
        counted = []

        def count(measure):
            def of(splits, config):
                ((_, sources),) = splits
                counted.extend(source.name for source in sources)
                return [{source.name: measure for source in sources}]

            return of

        said = SimpleNamespace(
            figures_at=lambda threshold: {"miou": maps},
            decisions=lambda: (np.array([[0.4], [0.3]]), np.array([[True], [False]])),
        )
        for name, stand_in in {
            "find_sources": lambda run, split: there if split == "tune" else [],
            "ShardFolder": lambda place: shards,
            "name_shared": lambda *_: "",
            "count_for_choice": count(SimpleNamespace(best=lambda: best, chooses_by=figure)),
            "count_predictions": count(said),
        }.items():
            monkeypatch.setattr(tuning, name, stand_in)
        run = SimpleNamespace(folder="RUN", config=SimpleNamespace(data=SimpleNamespace(tune=folder)))
        val = SimpleNamespace(index=SimpleNamespace(supervision=val_holds))
        return tune(run, val, [CAMS, MASKS]), counted

    return make


def test_what_has_no_threshold_says_why_and_a_split_without_masks_wants_none(tuned):
    assert tuned("pixel", [CAMS], folder=None) == (Tuned(untuned={"grad": "data.tune is not set"}), [])
    assert tuned("pixel", [OTHERS]) == (Tuned(untuned={"grad": NO_MAPS.format(INFER)}), [])
    assert tuned("pixel", [CAMS]) == (Tuned(untuned={"grad": "no image of tune shows smoke"}, shown=2), ["grad"])
    assert tuned("pixel", [CAMS], val_holds="label") == (Tuned(shown=2), [])


def test_a_tune_split_without_masks_chooses_a_gate_of_the_probabilities_that_all_sources_share(tuned):
    found, counted = tuned("label", [CAMS, MASKS, CAMS])
    assert found == Tuned(untuned={"grad": "tune holds no masks"}, gate=0.4, shown=2) and counted == ["grad"]
    assert tuned("label", [MASKS]) == (Tuned(untuned={"grad": NO_MAPS.format(INFER)}, shown=2), [])


def test_label_maps_are_compared_where_the_scores_have_the_same_figure_or_there_are_none(tuned):
    scores = {"thresholds": {"grad": 0.3}, "shown": 2}
    found, _ = tuned("pixel", [CAMS, MASKS], Best(0.3, 0.6))
    assert found == Tuned(values={"grad": 0.6, "segments": 0.5}, figure="miou", **scores)
    found, counted = tuned("pixel", [CAMS, MASKS], Best(0.3, 0.6), figure="per_image_iou")
    assert found == Tuned(values={"grad": 0.6}, figure="per_image_iou", **scores) and counted == ["grad"]
    found, _ = tuned("pixel", [CAMS], Best(0.3, 0.6), figure="per_image_iou")
    assert found == Tuned(values={"grad": 0.6}, figure="per_image_iou", **scores)
    missing = {"grad": NO_MAPS.format(INFER)}
    assert tuned("pixel", [MASKS])[0] == Tuned(values={"segments": 0.5}, figure="miou", untuned=missing, shown=2)
    assert tuned("pixel", [MASKS], maps=None)[0].values == {}
