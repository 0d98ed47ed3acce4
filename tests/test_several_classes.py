"""The same run with two classes: labels, CAMs, masks and one confusion matrix."""

import numpy as np
import pytest
import torch

from launcher.config_file import load_config
from launcher.evaluate import evaluate
from launcher.infer import infer
from launcher.refine import refine
from launcher.report import write_report
from launcher.scores import read_scores
from launcher.tracking import RUNS, read_metrics
from launcher.train import train
from shards.schema import ClassSet, Sample, encode_image
from shards.stream import ShardFolder
from shards.write import write_split
from wsss.confusion import confusion_matrix, mean_iou

PETS = ClassSet(name="pets", classes=("cat", "dog"))


class Squares:
    """Red squares are cats, blue squares dogs; some images show both, some none."""

    class_set = PETS

    def __init__(self, split, images, with_masks):
        self.split, self.images, self.with_masks = split, images, with_masks

    def __len__(self):
        return self.images

    def groups(self):
        return [f"{self.split}{n}" for n in range(self.images)]

    def __getitem__(self, n):
        rng = np.random.default_rng((n, len(self.split)))
        image = rng.integers(90, 110, (32, 32, 3)).astype(np.uint8)
        mask = np.zeros((32, 32), dtype=np.uint8)
        label = [(), (1,), (2,), (1, 2)][n % 4]
        for class_id in label:
            y, x = rng.integers(0, 20), (class_id - 1) * 16
            mask[y : y + 10, x + 2 : x + 12] = class_id
            image[mask == class_id] = (220, 30, 30) if class_id == 1 else (30, 30, 220)
        return Sample(
            key=f"{self.split}{n}",
            image=encode_image(image),
            image_label=label,
            group=f"{self.split}{n}",
            source="squares",
            mask=mask if self.with_masks else None,
        )


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
        for number, scores in zip(
            val.numbers_of(shard.name), read_scores(pets_run / "masks/class_map+crf/val" / shard.name), strict=True
        ):
            assert scores.class_ids == tuple(np.flatnonzero(val.image_label_NK[number]) + 1)  # only present classes
            confusion += confusion_matrix(torch.from_numpy(val.mask(number)), torch.from_numpy(scores.mask), 3)
    at = report["sources"]["class_map+crf"]["fixed"]
    assert at["miou"] == pytest.approx(mean_iou(confusion), abs=5e-3)  # scores are stored in float16
    assert set(at["class_iou"]) == {"background", "cat", "dog"}
    learned = report["sources"]["class_map"]["fixed"]["class_iou"]
    assert learned["cat"] > 0.15 and learned["dog"] > 0.15  # it knows where they are; chance is about 0.1
    assert any("val/class_map/miou" in line for line in read_metrics(pets_run))
    page = write_report(RUNS).read_text()
    assert "mIoU" in page and "class_map+crf" in page
