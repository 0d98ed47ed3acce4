"""The same run with two classes: labels, CAMs, masks and one confusion matrix."""

import numpy as np
import pytest
import torch
from support.squares import Squares

from launcher.config.file import load_config
from launcher.evaluation.evaluate import evaluate
from launcher.evaluation.report import write_report
from launcher.files import RUNS
from launcher.jobs.infer import infer
from launcher.jobs.refine import refine
from launcher.jobs.scores import read_scores
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
    assert at["miou"] == pytest.approx(mean_iou(confusion), abs=5e-3)  # scores are stored in float16
    assert set(at["class_iou"]) == {"background", "cat", "dog"}
    learned = report["sources"]["class_map"]["fixed"]["class_iou"]
    assert learned["cat"] > 0.15 and learned["dog"] > 0.15  # it knows where they are; chance is about 0.1
    assert any("val/class_map/miou" in line for line in read_metrics(pets_run))
    page = write_report(RUNS).read_text()
    assert "mIoU" in page and "class_map+crf" in page and "Training, cls_loss" in page
    assert "smoke" not in page  # the words are those of the data set
    protocols = {name: figures["protocol"] for name, figures in report["sources"].items()}
    assert "refined by crf" in protocols["class_map+crf"] and "refined" not in protocols["class_map"]
