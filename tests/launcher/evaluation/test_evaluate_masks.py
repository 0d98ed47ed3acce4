import errno
import json
import os
from pathlib import Path

import pytest
import torch
from support.photographs import PETS, Photographs

from launcher.config.file import load_config
from launcher.errors import ConfigError, RunError
from launcher.evaluation.class_sums import compare_mious, read_class_sums
from launcher.evaluation.evaluate import evaluate
from launcher.evaluation.report import write_report
from launcher.evaluation.table import format_evaluation
from launcher.evaluation.track import final_metrics
from launcher.files import RUNS
from launcher.jobs.label_maps import segment_sources_of
from launcher.jobs.segment import segment
from launcher.training.run import train
from shards.folder import ShardFolder
from shards.image_bytes import decode_mask
from shards.masks import MaskFolder
from shards.schema import DataError
from shards.tars import tar_members
from shards.write import write_split
from wsss.metrics.confusion import confusion_matrix, mean_iou, pixel_accuracy
from wsss.refine.crf import choose_sum

SEGMENTER = (
    "{name: segmenter, timm_name: vit_tiny_patch16_224, decoder_layers: 1, timm_options: {img_size: 32, patch_size: 8, "
    "embed_dim: 16, depth: 2, num_heads: 2}}"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory, mlflow_store):
    """A folder with a supervised run on the photographs, for two steps, and its masks of val."""
    from support.tiny import TINY

    out = tmp_path_factory.mktemp("segmented")
    for split, images in (("train", 12), ("val", 8)):
        write_split(Photographs(split, images), out / "pets", split, "pixel", num_shards=2)
    text = TINY.format(name="teacher", scenes=out / "pets", model=SEGMENTER, method="supervised", kinds="seg")
    (out / "run.yaml").write_text(text)
    overrides = [
        "data.tune=null",
        "train.steps=2",
        "train.eval_every=2",
        "evaluate.threshold=0.4",
        "segment.workers=0",
        "train.seed=3",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(out)
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_store)
        train(load_config(out / "run.yaml", overrides))
        segment(RUNS / "teacher", "val", out / "pets/val", ["segment.crf=false"], cams=True)
        segment(RUNS / "teacher", "val", out / "pets/val", ["segment.flip=true", "segment.size=squash"], "crf")
    return out


@pytest.fixture
def run(place, monkeypatch, mlflow_store):
    monkeypatch.chdir(place)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_store)
    return RUNS / "teacher"


def test_a_run_that_one_may_only_read_is_refused_before_anything_is_counted(run, monkeypatch):
    def refuse(path, *_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "write_text", refuse)  # the tests may run as root, who may write everything
    monkeypatch.setattr("launcher.evaluation.evaluate.judge_sources", lambda *_: pytest.fail("it was counted"))
    with pytest.raises(RunError, match="runs/teacher: cannot be written: .*Permission denied"):
        evaluate(run)


def test_each_set_of_masks_is_a_source_with_figures_from_one_confusion_matrix_and_its_protocol(run, place):
    report = evaluate(run)
    assert json.loads((run / "evaluation.json").read_text()) == report
    assert list(segment_sources_of(run, "val")) == ["segments", "segments.cam", "segments@crf"]
    assert set(report["sources"]) == {"segments", "segments.cam", "segments@crf"}
    val = ShardFolder(place / "pets/val", "pixel")
    about = {"folder": str(place / "pets/val"), "fingerprint": val.index.fingerprint, "images": 8}
    of_truth = {"images_without_truth": 0, "classes": [*PETS.classes], "supervision": "pixel"}
    assert report["dataset"] == about | of_truth and report["checkpoint"] == "step_0000002"
    assert report["protocol"] == report["sources"]["segments"]["protocol"] and "classification" not in report
    masks = MaskFolder(run / "segments@crf/val", val)
    confusion = torch.zeros(3, 3, dtype=torch.int64)
    for number in range(len(val)):
        confusion += confusion_matrix(torch.from_numpy(val.mask(number)), torch.from_numpy(masks(number)), 3)
    at = report["sources"]["segments@crf"]["fixed"]
    assert at["miou"] == pytest.approx(mean_iou(confusion), abs=1e-12)
    assert at["pixel_accuracy"] == pytest.approx(pixel_accuracy(confusion), abs=1e-12)
    assert set(at["class_iou"]) == {"background", *PETS.classes} and at["images"] == 8 and at["classes_in_truth"] == 3
    assert at["miou_interval"][0] <= at["miou"] <= at["miou_interval"][1]
    held = {name: read_class_sums(run, name, "fixed") for name in report["sources"]}
    hit_C, truth_C, _ = held["segments@crf"].sums_G3C.sum(axis=0)
    assert (hit_C.tolist(), truth_C.tolist()) == (confusion.diagonal().tolist(), confusion.sum(1).tolist())
    gap, low, high = compare_mious([held["segments@crf"]], [held["segments"]])
    assert gap == pytest.approx(at["miou"] - report["sources"]["segments"]["fixed"]["miou"]) and low <= gap <= high
    protocols = {name: figures["protocol"] for name, figures in report["sources"].items()}
    by = choose_sum(None, "cpu")
    assert protocols["segments@crf"] == (
        "image squashed to 32 px, scales 1 + flip (summed), argmax over all classes, CRF of all classes "
        "(iterations 10, gaussian_sxy 1, gaussian_weight 1, bilateral_sxy 121, bilateral_srgb 5, bilateral_weight 4"
        f", by {by}), float32, split val, checkpoint step_0000002, training seed 3"
    )
    assert "image at its own size, scales 1, no flip, argmax over all classes, no CRF" in protocols["segments"]
    cam = "scales 1, 0.5, 1.5 + flip, fuse toco, sides padded, resized to the image, background at <= 0.4, no CRF"
    assert cam in protocols["segments.cam"]
    assert final_metrics(report)["final/segments_crf/fixed/miou"] == at["miou"]


def test_the_best_of_label_maps_is_chosen_on_tune(run, place):
    write_split(Photographs("tune", 32), place / "pets", "tune", "pixel", num_shards=2)
    segment(run, "tune", place / "pets/tune", ["segment.crf=false"])
    segment(run, "tune", place / "pets/tune", ["segment.flip=true", "segment.size=squash"], "crf")
    tune = ShardFolder(place / "pets/tune", "pixel")
    of_tune = {}
    for name in ("segments", "segments@crf"):
        masks, confusion = MaskFolder(run / name / "tune", tune), torch.zeros(3, 3, dtype=torch.int64)
        for number in range(len(tune)):
            confusion += confusion_matrix(torch.from_numpy(tune.mask(number)), torch.from_numpy(masks(number)), 3)
        of_tune[name] = mean_iou(confusion)
    report = evaluate(run, ["data.tune=pets/tune"])
    assert report["tune"]["values"] == pytest.approx(of_tune) and report["tune"]["figure"] == "miou"
    assert report["tune"]["best"] == max(of_tune, key=of_tune.__getitem__)
    said = format_evaluation(report)
    assert f"best on tune: {report['tune']['best']}: mIoU {100 * max(of_tune.values()):.1f} there, on val " in said
    assert "not compared, since there are no outputs for tune: segments.cam" in said
    page = write_report(run).read_text()
    best = report["tune"]["best"]
    assert f"best on tune{', too' if best == report['headline']['source'] else f': {best}'}: mIoU" in page


def test_cam_maps_are_judged_by_their_own_member(run, place):
    val = ShardFolder(place / "pets/val", "pixel")
    confusion = torch.zeros(3, 3, dtype=torch.int64)
    for shard in val.index.shards:
        for key, extension, _, data in tar_members(run / "segments/val" / shard.name):
            if extension == "cam.png":
                truth = torch.from_numpy(val.mask(val.number_of_key[key]))
                confusion += confusion_matrix(truth, torch.from_numpy(decode_mask(data, key)), 3)
    at = evaluate(run)["sources"]["segments.cam"]["fixed"]
    assert at["miou"] == pytest.approx(mean_iou(confusion), abs=1e-12)


def test_the_command_and_the_page_show_masks_like_the_other_sources(run):
    report = evaluate(run)
    said = format_evaluation(report)
    at = report["sources"]["segments"]["fixed"]
    low, high = at["miou_interval"]
    assert f"mIoU {100 * at['miou']:.2f} [{100 * low:.2f}, {100 * high:.2f}]" in said
    assert report["sources"]["segments"]["protocol"] in said
    marked = [line for line in said.splitlines() if line.startswith("*")]
    assert len(marked) == 1 and marked[0].startswith("* segments ") and " label maps " in marked[0]
    assert "segments@crf" not in said.replace("more with --all, and in evaluation.json: segments.cam, segments@crf", "")
    assert "\n  segments@crf " in format_evaluation(report, every=True)
    assert report["headline"] == {"source": "segments", "choice": "fixed"}
    page = write_report(RUNS).read_text()
    assert f"<td>{100 * at['miou']:.1f}</td>" in page and "segments@crf" in page
    assert "Each class, in percent" in page and f"<td>{100 * at['class_iou']['dog']:.1f}</td>" in page
    assert page.count("CRF of all classes") >= 1 and f"[{100 * low:.1f}, {100 * high:.1f}]" in page


def test_without_validation_images_there_is_nothing_to_evaluate_on(run):
    with pytest.raises(RunError, match="runs/teacher: data.val is not set, so there is nothing to evaluate on"):
        evaluate(run, ["data.val=null"])
    with pytest.raises(ConfigError, match="train.lr=1: has no effect: `wsss evaluate`"):
        evaluate(run, ["train.lr=1"])


def test_masks_of_other_images_or_of_too_few_are_refused(run, place, tmp_path):
    import shutil

    copy = tmp_path / "runs/copy"
    shutil.copytree(run, copy)
    gone = next((copy / "segments@crf/val").glob("*.tar"))
    gone.unlink()
    with pytest.raises(RunError, match="1 of 2 shards are missing"):
        evaluate(copy)
    shutil.rmtree(copy / "segments@crf")
    other = next(path for path in (copy / "segments/val").glob("*.tar") if path.name != gone.name)
    shutil.copy(other, copy / "segments/val" / gone.name)
    with pytest.raises(DataError, match="its sha256 differs from what was written"):
        evaluate(copy)
    (copy / "segments/val/shards.json").unlink()  # as in folders from before
    with pytest.raises(DataError, match="belongs to other image shards"):
        evaluate(copy)
    made = json.loads((copy / "segments/val/job.json").read_text())
    (copy / "segments/val/job.json").write_text(json.dumps({**made, "fingerprint": "0" * 16}))
    with pytest.raises(RunError, match=r"made of other images .*wsss segment"):
        evaluate(copy)
