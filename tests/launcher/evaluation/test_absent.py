"""Splits whose truth lacks something: what does not exist is None, a dash with its reason, and is not logged."""

import csv
import json
from pathlib import Path

import pytest
from support.absent import write_scenes

from launcher.config.file import load_config
from launcher.errors import ConfigError
from launcher.evaluation.evaluate import evaluate
from launcher.evaluation.report import write_report
from launcher.evaluation.table import format_evaluation
from launcher.evaluation.track import final_metrics
from launcher.files import RUNS
from launcher.jobs.infer import infer
from launcher.tracking.tracker import read_metrics
from launcher.training.run import train

NO_SMOKE = "no image shows smoke"


@pytest.fixture
def run(in_tmp, tiny_yaml):
    """What there is of smoke in val and tune -> the folder of an untrained run with CAMs of both."""

    def make(**scenes):
        folders = {split: write_scenes(in_tmp / "scenes", split, **scenes) for split in ("val", "tune")}
        splits = [f"data.{split}={folder}" for split, folder in folders.items()]
        train(load_config(tiny_yaml("classify"), ["train.steps=0", *splits]))
        for split, folder in folders.items():
            infer(RUNS / "teacher", split, folder)
        return RUNS / "teacher"

    return make


def test_a_split_without_smoke_has_false_alarms_and_says_why_it_has_nothing_else(run, in_tmp, capsys):
    folder = run(smoke=0, clear=4)
    assert f"class_map per-image IoU – ({NO_SMOKE}), class_map false-alarm area " in capsys.readouterr().out
    logged = {name for line in read_metrics(folder) for name in line}
    assert "val/class_map/false_alarm_area" in logged and "val/accuracy" in logged
    assert not logged & {f"val/class_map/{name}" for name in ("per_image_iou", "pooled_iou", "precision", "recall")}
    assert "val/average_precision" not in logged

    report = evaluate(folder)
    assert "NaN" not in (folder / "evaluation.json").read_text()
    assert json.loads((folder / "evaluation.json").read_text()) == report
    figures = report["sources"]["class_map"]
    untuned = f"no image of {in_tmp}/scenes/tune shows smoke"
    assert figures["tuned"] is None and figures["untuned"] == untuned
    assert report["headline"] == {"source": "class_map", "choice": "fixed"}
    assert report["classification"]["average_precision"] is None
    said = format_evaluation(report)
    assert f"per-image IoU – ({NO_SMOKE}), false-alarm area {100 * figures['fixed']['false_alarm_area']:.2f}" in said
    assert f"no tuned threshold: {untuned}" in said and "tuned on" not in said
    assert {name.rsplit("/", 1)[1] for name in final_metrics(report)} == {
        "threshold", "false_alarm_area", "false_alarm_area_gated", "chimney_area", "chimney_area_gated",
        "accuracy", "calibration_error",
    }  # fmt: skip

    page = write_report(RUNS).read_text()
    assert f'<td title="{NO_SMOKE}">–</td>' in page and f"no per-image IoU: {NO_SMOKE}" in page
    assert f"no tuned threshold of class_map: {untuned}" in page
    assert f"average precision – ({NO_SMOKE}), class F1 – ({NO_SMOKE}), image accuracy " in page
    assert "Per-image IoU on val" not in page and "False-alarm area on images" in page


@pytest.mark.parametrize("lacking", ["ignored", "mislabelled"])
def test_an_image_whose_mask_says_nothing_is_counted_nowhere_and_that_is_said(run, lacking):
    folder = run(smoke=2, clear=2, **{lacking: 1})
    report = evaluate(folder)
    said = "1 of 5 images are left out of all metrics of maps: their masks are ignored everywhere, or lack the class"
    assert said in format_evaluation(report) and said in write_report(RUNS).read_text()
    with (folder / "per_image.csv").open() as file:
        rows = list(csv.DictReader(file))
    empty = [row for row in rows if row["truth_area"] == ""]
    assert len(rows) == 5 and len(empty) == 1 and empty[0]["iou_fixed"] == empty[0]["false_area_fixed"] == ""
    clear = [float(row["false_area_fixed"]) for row in rows if row["truth_area"] == "0.0"]
    assert len(clear) == 2
    figures = report["sources"]["class_map"]
    assert figures["fixed"]["false_alarm_area"] == pytest.approx(sum(clear) / 2, abs=1e-5)
    assert figures["tuned"] is not None and figures["untuned"] == ""


def test_truth_that_is_ignored_everywhere_has_no_figure_of_maps_at_all(run):
    report = evaluate(run(smoke=0, clear=0, ignored=3))
    of_labels = {"final/labels/accuracy", "final/labels/calibration_error"}  # images without truth have labels
    assert set(final_metrics(report)) == {"final/class_map/fixed/threshold", *of_labels}
    said = format_evaluation(report)
    assert f"per-image IoU – ({NO_SMOKE}), false-alarm area – (no image without smoke)" in said
    assert "Intervals of fewer than" not in said
    assert "no chimney area: no image has a chimney box over background" in write_report(RUNS).read_text()


def test_a_run_without_a_tune_split_says_so(in_tmp, tiny_yaml, scenes):
    train(load_config(tiny_yaml("classify"), ["train.steps=0", "data.tune=null"]))
    infer(RUNS / "teacher", "val", scenes / "val")
    assert "no tuned threshold: data.tune is not set" in format_evaluation(evaluate(RUNS / "teacher"))


def test_the_best_checkpoint_of_a_split_without_smoke_is_refused_before_the_first_step(in_tmp, tiny_yaml):
    val = write_scenes(in_tmp, "val", smoke=0, clear=2)
    overrides = ["train.steps=1", f"data.val={val}", "train.keep_best=val/class_map/per_image_iou"]
    with pytest.raises(ConfigError, match=r"keep_best: no image of .*val shows smoke"):
        train(load_config(tiny_yaml("classify"), overrides))
    assert not Path("runs/teacher").exists()
