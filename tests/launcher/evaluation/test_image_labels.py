"""Figures of class probabilities, and validation of a split that holds labels and no masks."""

import csv
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from accelerate import Accelerator
from support.photographs import Segmenting
from support.squares import Squares

from launcher.config.file import load_config
from launcher.errors import ConfigError, RunError
from launcher.evaluation.evaluate import evaluate
from launcher.evaluation.image_labels import ImageLabels, label_details, label_figures
from launcher.evaluation.judge import LABELS
from launcher.evaluation.judge_labels import LabelJudge
from launcher.evaluation.measure import Truth, read_truth
from launcher.evaluation.pictures import LABEL_PX, TILE_PX, lay_out_gallery
from launcher.evaluation.report import write_report
from launcher.evaluation.sources import LabelPrediction, ScorePrediction
from launcher.evaluation.table import format_evaluation, tabulate_classes
from launcher.evaluation.track import final_metrics
from launcher.evaluation.validate import choose_judge
from launcher.files import RUNS
from launcher.jobs.infer import infer
from launcher.jobs.refine import refine
from launcher.jobs.scores import Scores
from launcher.tracking.tracker import read_metrics
from launcher.training.run import train
from shards.folder import ShardFolder
from shards.write import write_split
from wsss.metrics import image_labels


def test_f1_and_calibration_by_hand():
    seen, there = np.array([1, 1, 0, 0], dtype=bool), np.array([1, 0, 1, 0], dtype=bool)
    assert image_labels.f1(seen, there) == 0.5 and np.isnan(image_labels.f1(~seen & seen, ~seen & seen))
    prob, positive = np.array([0.95, 0.85, 0.05, 1.0, 0.905]), np.array([1, 0, 1, 1, 0], dtype=bool)
    low, high, highest = image_labels.reliability(prob, positive)
    assert low == (pytest.approx(0.05), 1.0, 1) and high == (pytest.approx(0.85), 0.0, 1)
    assert highest == (pytest.approx(2.855 / 3), pytest.approx(2 / 3), 3)
    assert image_labels.calibration_error(prob, positive) == pytest.approx((0.95 + 0.85 + 2.855 - 2) / 5)
    assert np.isnan(image_labels.calibration_error(np.zeros(0), np.zeros(0, dtype=bool)))


def test_means_are_over_the_classes_that_a_label_names():
    prob = np.array([[0.9, 0.5, 0.1], [0.2, 0.7, 0.9], [0.8, 0.1, 0.2]])
    present = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0]], dtype=bool)  # nobody has the third
    figures = label_figures(prob, present)
    assert figures["average_precision"] == 1.0
    assert figures["class_f1"] == pytest.approx((1.0 + 2 / 3) / 2)
    assert figures["accuracy"] == pytest.approx(1 / 3)  # the last image alone is right in every class
    about = label_details(prob, present, ("cat", "dog", "owl"))
    assert about["classes"]["dog"] == {"average_precision": 1.0, "f1": pytest.approx(2 / 3), "images": 1}
    assert about["classes"]["owl"] == {"average_precision": None, "f1": 0.0, "images": 0}
    low = about["reliability"][0]
    assert low == {"probability": pytest.approx(0.1), "share": 0.0, "decisions": 2}
    nothing = label_figures(prob, np.zeros((3, 3), dtype=bool))
    assert nothing["average_precision"] is None and nothing["class_f1"] is None


def test_parts_join_and_rows_name_the_classes():
    one, two = ImageLabels(("cat", "dog")), ImageLabels(("cat", "dog"))
    one.count("a", "v", (0.9, 0.2), (True, False))
    two.count("b", "w", (0.1, 0.6), (False, True))
    one.extend(two)
    assert one.images_without_truth == 0
    assert one.figures_at(0.3)["images"] == 2 and one.label_details(("cat", "dog"))["classes"]["dog"]["images"] == 1
    rows = list(one.rows({"fixed": 0.5}))
    assert rows[1] == {"key": "b", "group": "w", "p(cat)": 0.1, "label(cat)": 0, "p(dog)": 0.6, "label(dog)": 1}


@pytest.fixture
def pets(in_tmp):
    for split, images in (("train", 24), ("val", 12)):
        write_split(Squares(split, images, with_masks=False), in_tmp / "pets", split, "label", num_shards=3)
    return ["data.train=pets/train", "data.val=pets/val", "data.tune=null"]


@pytest.fixture
def pets_run(pets, tiny_yaml):
    train(load_config(tiny_yaml("classify"), [*pets, "train.steps=2", "train.eval_every=2", "train.save_every=2"]))
    return RUNS / "teacher"


def test_a_split_without_masks_is_judged_by_its_labels_while_training(pets, tiny_yaml, capsys):
    train(load_config(tiny_yaml("classify"), [*pets, "train.steps=2", "train.eval_every=2", "train.save_every=2"]))
    (line,) = [line for line in read_metrics(RUNS / "teacher") if "val/average_precision" in line]
    figures = {name for name in line if name.startswith("val/")} - {"val/seconds"}
    assert figures == {f"val/{name}" for name in ("average_precision", "class_f1", "accuracy", "calibration_error")}
    said = capsys.readouterr().out
    assert f"step 2: average precision {100 * line['val/average_precision']:.1f} %, 12 images in " in said


def test_its_evaluation_has_every_class_by_name_in_terminal_table_page_and_tracker(pets_run, pets, in_tmp):
    infer(pets_run, "val", "pets/val")
    refine(pets_run, ["val"], load_config(pets_run / "config.yaml").refine)
    report = evaluate(pets_run)
    val = ShardFolder("pets/val")
    assert set(report["sources"]) == {"class_map", "class_map+crf"} and report["dataset"]["supervision"] == "label"
    with (pets_run / "per_image.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == "class_map"]
    assert [row["key"] for row in rows] == val.keys
    for number, name in enumerate(("cat", "dog")):
        probs = np.array([float(row[f"p({name})"]) for row in rows])
        there = val.image_label_NK[:, number] > 0
        assert [int(row[f"label({name})"]) for row in rows] == there.astype(int).tolist()
        about = report["labels"]["classes"][name]
        assert about["images"] == 6
        assert about["average_precision"] == pytest.approx(image_labels.average_precision(probs, there), abs=1e-6)
    of_classes = [about["average_precision"] for about in report["labels"]["classes"].values()]
    mean = report["classification"]["average_precision"]
    assert mean == pytest.approx(np.mean(of_classes)) == report["sources"]["class_map"]["fixed"]["average_precision"]
    assert final_metrics(report)["final/classes/dog/average_precision"] == of_classes[1]
    said = format_evaluation(report)
    assert f"image labels: average precision {100 * mean:.1f} %, class F1 " in said and "label maps" not in said
    assert "threshold" not in said and "\n    cat  " in said and "\n    dog  " in said
    table = tabulate_classes(report)
    assert table["headings"] == ["AP", "F1", "images"] and [name for name, _ in table["rows"]] == ["cat", "dog"]
    for about, (_, cells) in zip(report["labels"]["classes"].values(), table["rows"], strict=True):
        assert cells == [f"{100 * about['average_precision']:.1f}", f"{100 * about['f1']:.1f}", "6"]
    page = write_report(RUNS).read_text()
    assert "Each class, in percent" in page and "Calibration: share that is right on val" in page
    assert "Fixed validation images of teacher in rows" in page and "NaN" not in json.dumps(report)
    assert '<i class="swatch" style="background: #008000"></i>dog' in page  # the legend of the pictures


def test_label_maps_alone_say_nothing_of_image_labels(pets_run, in_tmp):
    folder = pets_run / "segments/val"
    folder.mkdir(parents=True)
    (folder / "job.json").write_text("{}")
    with pytest.raises(RunError, match="pets/val holds no masks, .* label maps do not have; run `wsss infer"):
        evaluate(pets_run)


def test_a_method_that_segments_is_judged_by_labels_too_where_there_are_no_masks(pets, tiny_yaml):
    assert choose_judge(Segmenting(), "label") is LabelJudge
    config = load_config(tiny_yaml("classify"), [*pets, "cam.kinds=[class_map, aux_map]"])
    val = ShardFolder("pets/val")
    number = val.number_of_key["val5"]  # a cat
    part = LabelJudge(config, Segmenting(), val, Accelerator(cpu=True)).judge(list(range(12)), {number, 3})
    assert set(part.figures()) == {LABELS} and sorted(part.labels.keys) == sorted(val.keys)
    shown = [val.image_label_NK[val.number_of_key[key]].tolist() for key in part.labels.keys]
    assert np.reshape([*part.labels.present], (12, 2)).tolist() == shown and [1, 0] in shown
    title, tiles = part.rows[number]
    assert title.startswith("val5: cat  p: ") and list(tiles) == ["image", "class_map", "aux_map"]
    assert lay_out_gallery([*part.rows.values()]).size == (3 * TILE_PX, LABEL_PX + 2 * (TILE_PX + LABEL_PX))
    windows = load_config(tiny_yaml("classify"), [*pets, "cam.kinds=[class_map]", "cam.window_px=16"])
    part = LabelJudge(windows, Segmenting(), val, Accelerator(cpu=True)).judge([0, 1, 2], {1})
    assert len(part.labels.keys) == 3


def test_the_best_checkpoint_is_that_of_a_figure_that_there_is(pets, tiny_yaml):
    own = [*pets, "train.steps=1", "train.save_every=1", "train.eval_every=1"]
    with pytest.raises(ConfigError, match="gives no metric 'val/class_map/miou'; nearest are"):
        train(load_config(tiny_yaml("classify"), [*own, "train.keep_best=val/class_map/miou"]))
    train(load_config(tiny_yaml("classify"), [*own, "train.keep_best=val/average_precision"]))


def test_predictions_of_scores_have_probabilities_and_label_maps_have_none():
    assert LabelPrediction(np.zeros((2, 2), dtype=np.uint8)).probs is None
    scores = Scores(key="a", group="a", class_ids=(), cls_probs=(0.5, 0.25), maps={})
    one = replace(scores, cls_probs=(0.5,))
    assert ScorePrediction(scores, "x", 0.5).probs == (0.5, 0.25)
    labels, truth = ImageLabels(("cat", "dog")), Truth("a", "a", np.zeros((1, 1)), {}, True, (True, False))
    for prediction in (LabelPrediction(np.zeros((1, 1), dtype=np.uint8)), ScorePrediction(one, "x", 0.5)):
        with pytest.raises(ValueError, match="a: wanted a probability of each of .'cat', 'dog'.*, got (None|.0.5,)"):
            labels.add(prediction, truth)
    labels.add(ScorePrediction(scores, "x", 0.5), truth)
    assert labels.keys == ["a"] and labels.probs.tolist() == [0.5, 0.25]


@pytest.mark.parametrize("supervision", ["label", "pixel"])
def test_the_truth_of_an_image_by_hand(supervision):
    shards = SimpleNamespace(
        keys=["a", "b"],
        groups=["g", "h"],
        image_label_NK=np.array([[0, 1], [0, 0]]),
        index=SimpleNamespace(supervision=supervision),
        mask=lambda number: [[number]],
        regions=lambda number: {"x": []},
    )
    one, other = (read_truth(shards, number) for number in (0, 1))
    assert (one.key, one.group, one.labelled, one.present) == ("a", "g", True, (False, True))
    assert (other.key, other.group, other.labelled, other.present) == ("b", "h", False, (False, False))
    known = ([[1]], {"x": []}) if supervision == "pixel" else ([[255]], {})
    assert (np.array(other.mask_HW).tolist(), other.regions) == known
