"""The same run with two classes: labels, CAMs, masks and one confusion matrix."""

import numpy as np
import pytest
import torch
from support.squares import Squares

from launcher.config.file import load_config
from launcher.evaluation.evaluate import evaluate
from launcher.evaluation.headline import Known, hold_against, read_headline
from launcher.evaluation.image_labels import mean_f1
from launcher.evaluation.report import write_report
from launcher.evaluation.table import format_evaluation
from launcher.files import RUNS
from launcher.jobs.infer import infer
from launcher.jobs.refine import refine
from launcher.jobs.scores import read_scores
from launcher.predict.defaults import settle
from launcher.predict.model import load_model
from launcher.predict.settings import Wishes
from launcher.run.folder import Run
from launcher.tracking.tracker import read_metrics
from launcher.training.run import train
from shards.folder import ShardFolder
from shards.write import write_split
from wsss.metrics.confusion import confusion_matrix, mean_iou


@pytest.fixture
def pets_run(in_tmp, tiny_yaml):
    for split, images, masks in (("train", 48, False), ("val", 12, True)):
        write_split(Squares(split, images, masks), in_tmp / "pets", split, "pixel" if masks else "label", num_shards=4)
    data = {"train": "pets/train", "val": "pets/val", "tune": "null"}
    overrides = [f"data.{name}={folder}" for name, folder in data.items()]
    overrides += [
        "train.steps=60",
        "train.lr=1e-2",
        "train.eval_every=60",
        "train.save_every=60",
        "cam.classes=present",
    ]
    config = load_config(tiny_yaml("classify"), overrides)
    train(config)
    run = RUNS / "teacher"
    infer(run, "val", in_tmp / "pets/val")
    refine(run, ["val"], config.refine)
    return run


def test_two_classes_go_through_all_rooms_and_end_in_one_confusion_matrix(pets_run, in_tmp):
    report = evaluate(pets_run)
    val = ShardFolder(in_tmp / "pets/val")
    confusion = torch.zeros(3, 3, dtype=torch.int64)
    for shard in val.index.shards:
        for number, scores in read_scores(val, pets_run / "masks/class_map+crf/val", shard.name, "refined"):
            assert scores.class_ids == tuple(np.flatnonzero(val.image_label_NK[number]) + 1)  # only present classes
            confusion += confusion_matrix(torch.from_numpy(val.mask(number)), torch.from_numpy(scores.mask), 3)
    at = report["sources"]["class_map+crf"]["fixed"]
    nothing_learned = float(confusion[0].sum() / confusion.sum()) / 3  # the IoU of the background is its share
    (beside,) = hold_against(read_headline(Run(pets_run)), "cat", Known())
    assert beside.what == "background everywhere" and beside.value == pytest.approx(nothing_learned)
    assert at["miou"] == pytest.approx(mean_iou(confusion), abs=5e-3)  # scores are stored in float16
    assert set(at["class_iou"]) == {"background", "cat", "dog"}
    learned = report["sources"]["class_map"]["fixed"]["class_iou"]
    assert learned["cat"] > 0.15 and learned["dog"] > 0.15  # it knows where they are; chance is about 0.1
    assert any("val/class_map/miou" in line for line in read_metrics(pets_run))
    page = write_report(RUNS).read_text()
    assert "mIoU" in page and "class_map+crf" in page and "Training, cls_loss" in page
    assert "smoke" not in page  # the words are those of the data set
    protocols = {name: figures["protocol"] for name, figures in report["sources"].items()}
    infer(pets_run, "val", in_tmp / "pets/val", ["cam.classes=all"], "all")
    protocols |= {name: figures["protocol"] for name, figures in evaluate(pets_run)["sources"].items()}
    assert protocols["class_map@all"].endswith("maps of improbable classes included (`wsss predict` leaves them out)")
    assert protocols["class_map"].endswith("one threshold for all classes")  # those of the image label
    assert "refined by crf" in protocols["class_map+crf"] and "refined" not in protocols["class_map"]


def test_tune_chooses_one_threshold_with_masks_and_a_gate_without(pets_run, in_tmp):
    for split, kind in (("with", "pixel"), ("without", "label")):
        write_split(Squares(split, 16, kind == "pixel"), in_tmp / "pets", split, kind, num_shards=2)
    fixed = evaluate(pets_run)
    assert fixed["sources"]["class_map"]["untuned"] == "data.tune is not set"
    untuned = evaluate(pets_run, ["data.tune=pets/with"])["sources"]["class_map"]["untuned"]
    assert untuned.startswith(
        "there are no such maps of the split tune; `wsss infer runs/teacher --split tune data.tune=pets/with` makes"
    )
    infer(pets_run, "tune", in_tmp / "pets/with")
    report = evaluate(pets_run, ["data.tune=pets/with"])
    source = report["sources"]["class_map"]
    assert (
        "one threshold for all classes" in source["protocol"]
        and source["fixed"] == fixed["sources"]["class_map"]["fixed"]
    )
    again = evaluate(pets_run, ["data.tune=pets/with", f"evaluate.threshold={source['tuned']['threshold']}"])
    assert source["tuned"] == again["sources"]["class_map"]["fixed"] != source["fixed"]
    assert set(source["tuned"]["class_iou"]) == {"background", "cat", "dog"} and report["gate"] is None
    shown = int(ShardFolder("pets/with").image_label_NK.any(1).sum())
    assert shown < 20 and report["headline"] == {"source": "class_map", "choice": "fixed"}
    cat = f"{100 * source['tuned']['class_iou']['cat']:.1f}"
    assert any(line.split()[:2] == ["cat", cat] for line in format_evaluation(report).splitlines())
    said = settle(load_model(pets_run, "cpu"), Wishes()).describe()
    few = f"{source['tuned']['threshold']:.2f}, rests on {shown} images, which is chance)"
    assert said[1].startswith("threshold 0.30 ") and said[1].endswith(f"the one tuned for class_map, {few}")
    assert said[2].startswith("gate 0.50 ")
    assert "tuned values rest on" in format_evaluation(report) and report["tune"]["best"] is None
    assert "tuned values rest on" in write_report(RUNS).read_text()

    infer(pets_run, "tune", in_tmp / "pets/without", overwrite=True)
    report = evaluate(pets_run, ["data.tune=pets/without"])
    gate = report["gate"]
    assert report["sources"]["class_map"]["untuned"] == "pets/without holds no masks" and 0 < gate["tuned"] <= 1
    prob_NK, present_NK = probabilities(pets_run, in_tmp / "pets/val")
    assert gate["class_f1"] == pytest.approx(mean_f1(prob_NK, present_NK, gate["tuned"]))
    assert f"at a gate of {gate['tuned']:.2f}, chosen on the labels of pets/without" in format_evaluation(report)
    said = settle(load_model(pets_run, "cpu"), Wishes()).describe()
    shown = int(ShardFolder("pets/without").image_label_NK.any(1).sum())
    few = f"{gate['tuned']:.2f}, rests on {shown} images, which is chance)"
    assert said[2].startswith("gate 0.50 ") and said[2].endswith(f"the one tuned by image labels, {few}")


def probabilities(run, folder):
    val = ShardFolder(folder)
    read = [one for shard in val.index.shards for one in read_scores(val, run / "cams/val", shard.name, "class_map")]
    return np.array([scores.cls_probs for _, scores in read]), val.image_label_NK[[number for number, _ in read]] > 0
