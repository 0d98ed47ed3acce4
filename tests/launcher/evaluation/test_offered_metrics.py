"""Metrics of installed packages stand beside ours, and count the same images at the same thresholds."""

import json
from pathlib import Path

import pytest
from accelerate import Accelerator
from support.packages import install
from support.photographs import Photographs, Segmenting

from launcher.config.file import load_config, to_yaml
from launcher.errors import ConfigError
from launcher.evaluation.evaluate import evaluate
from launcher.evaluation.judge_masks import MaskJudge
from launcher.evaluation.judge_scores import ScoreJudge
from launcher.evaluation.offered_metrics import check_metrics
from launcher.evaluation.rows import collect_notes, describe_columns, tabulate_run
from launcher.evaluation.table import format_evaluation
from launcher.evaluation.track import describe_summary, final_metrics, summarise
from launcher.evaluation.validate import check_keep_best, say_headlines
from launcher.run.build import build_method
from launcher.run.folder import Run
from shards.folder import ShardFolder
from shards.schema import SMOKE
from shards.write import write_split

OWN = """
import numpy as np
import torch
from wsss.metrics.base import Metric
from wsss.metrics.confusion import confusion_matrix, mean_iou


class Own(Metric):
    heading, meaning = "own mIoU", "as ours, {for a test}"

    def __init__(self, classes, *, scale: float = 1.0):
        self.scale, self.confusion = scale, torch.zeros(len(classes) + 1, len(classes) + 1, dtype=torch.int64)

    def update(self, prediction_HW, truth_HW):
        assert prediction_HW.dtype == truth_HW.dtype == np.uint8
        mask, label = torch.from_numpy(truth_HW), torch.from_numpy(prediction_HW)
        self.confusion += confusion_matrix(mask, label, len(self.confusion))

    def merge(self, other):
        self.confusion += other.confusion

    def compute(self):
        return self.scale * mean_iou(self.confusion)


class Recall(Own):
    heading, higher_is_better = "own misses", False

    def compute(self):
        return 1 - self.confusion[1, 1].item() / self.confusion[1].sum().item()
"""
OFFERS = (
    "own = others_metrics:Own\nmisses = others_metrics:Recall\nmiou = others_metrics:Own\npart = others_metrics:abc"
)
WANTED = "evaluate.metrics=[{name: own, scale: 0.5}, {name: misses}]"


@pytest.fixture
def offered(tmp_path, monkeypatch):
    install(monkeypatch, tmp_path / "site", "others", {"wsss.metrics": OFFERS}, {"others_metrics": OWN})


def test_an_evaluation_has_them_at_each_threshold_and_shows_them_where_it_shows_ours(run, offered):
    report = evaluate(run, [WANTED])
    assert report["metrics"] == [{"name": "own", "scale": 0.5}, {"name": "misses", "scale": 1.0}]
    at_all = [at for source in report["sources"].values() for at in (source["fixed"], source["tuned"]) if at]
    assert len(at_all) == 6
    for at in at_all:
        assert at["misses"] == pytest.approx(1 - at["recall"]) and at["own"] == pytest.approx(at["fg_bg_miou"] / 2)
    assert len({at["misses"] for at in at_all}) > 2
    assert json.loads((run / "evaluation.json").read_text())["sources"]["grad"]["fixed"]["own"] == at_all[0]["own"]
    at = report["sources"][report["headline"]["source"]][report["headline"]["choice"]]
    assert summarise(report)["misses"] == at["misses"] and "own mIoU" in describe_summary(report, summarise(report))
    assert final_metrics(report)["final/grad/fixed/misses"] == at_all[0]["misses"]
    assert "own mIoU" in format_evaluation(report) and "own misses" in format_evaluation(report)
    rows = tabulate_run(report, report["headline"], "smoke")
    columns = {column["name"]: column for column in describe_columns(["smoke"], rows)}
    assert list(columns)[-2:] == ["misses", "own"]  # behind all of ours
    assert columns["own"]["meaning"] == "as ours, {for a test}" and columns["own"]["chosen"]
    assert not any("not installed" in note for note in collect_notes(report, "smoke"))
    assert "own" not in evaluate(run)["sources"]["grad"]["fixed"]  # nobody asked
    train = ShardFolder(Run(run).config.data.val.parent / "train")
    with pytest.raises(ConfigError, match="train holds no masks to count own on"):
        evaluate(run, [WANTED, f"data.val={train.folder}"])


def test_without_its_package_a_metric_is_told(tiny_config):
    evaluation = {"sources": {}, "dataset": {"images": 2, "images_without_truth": 0}, "metrics": [{"name": "own"}]}
    (note,) = collect_notes(evaluation, "smoke")
    assert note == "not shown, since the package that offers them is not installed: own"
    with pytest.raises(ConfigError, match="metrics.0.name: there is no 'own'; no installed package offers any"):
        tiny_config("classify", "evaluate.metrics=[{name: own}]")


def test_validation_logs_them_and_ranks_add_up(run, offered, tiny_config):
    config, shards = tiny_config("distill", WANTED), ShardFolder(tiny_config("distill").data.val)
    method = build_method(config, SMOKE)
    judge = ScoreJudge(config, method, shards, Accelerator(cpu=True))
    whole, *parts = (judge.judge(numbers, set()) for numbers in (range(24), range(0, 24, 2), range(1, 24, 2)))
    parts[0].extend(parts[1])
    figures = whole.figures()
    assert figures == {kind: pytest.approx(values) for kind, values in parts[0].figures().items()}
    for kind in ("grad", "class_map", "project"):
        assert figures[kind]["misses"] == pytest.approx(1 - figures[kind]["recall"])
    assert any(word.startswith("grad own mIoU") for word in say_headlines(["grad"], figures, {}, "smoke"))
    assert "scale: 1.0" in to_yaml(config)


def test_masks_on_the_device_are_counted_as_ours_are(offered, tiny_config, tmp_path):
    write_split(Photographs("val", 6), tmp_path, "val", "pixel", num_shards=2)
    config = tiny_config("classify", WANTED, f"data.val={tmp_path}/val")
    judge = MaskJudge(config, Segmenting(), ShardFolder(tmp_path / "val"), Accelerator(cpu=True))
    part = judge.judge([0, 2, 4], set())
    part.extend(judge.judge([1, 3, 5], set()))
    figures = part.figures()
    for kind in ("seg", "cam", "aux_cam"):
        assert figures[kind]["own"] == pytest.approx(figures[kind]["miou"] / 2)


def test_the_best_checkpoint_may_be_chosen_by_one_of_which_more_is_better(offered, tiny_config):
    def check(name):
        check_keep_best(tiny_config("classify", WANTED, f"train.keep_best={name}"), SMOKE, None)

    check("val/class_map/own")
    with pytest.raises(ConfigError, match="for which lower is better"):
        check("val/class_map/misses")
    with pytest.raises(ConfigError, match="evaluation gives no metric 'val/class_map/own'"):
        check_keep_best(tiny_config("classify", "train.keep_best=val/class_map/own"), SMOKE, None)


def test_what_cannot_be_counted_is_refused(offered, tiny_config, scenes):
    for metrics, message in (
        ("[{name: none}]", "evaluate.metrics.0.name: there is no 'none'; choose one of .*own"),
        ("[{name: own, scal: 1}]", "evaluate.metrics.0: unknown key 'scal'; did you mean 'scale'"),
        ("[{name: own}, {name: own, scale: 2}]", "evaluate.metrics names 'own' twice; leave one out"),
        ("[{name: part}]", "'part' of package 'others' 0.1 .* cannot be imported"),
    ):
        with pytest.raises((ConfigError, ValueError), match=message):
            tiny_config("classify", f"evaluate.metrics={metrics}")
    with pytest.raises(
        ConfigError, match="'miou' is a metric of wsss itself; ask the author of its package to choose another name"
    ):
        check_metrics(tiny_config("classify", "evaluate.metrics=[{name: miou}]"), None)
    with pytest.raises(ConfigError, match="evaluate.metrics: .*train holds no masks to count own on"):
        check_metrics(tiny_config("classify", WANTED), ShardFolder(Path(scenes) / "train"))
    assert load_config(Path("demo/teacher")).evaluate.metrics == ()
