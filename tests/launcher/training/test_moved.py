"""Data, teachers, masks and weights are known by their content, not by where they lie."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from launcher.config.sections import RefineConfig
from launcher.errors import RunError
from launcher.evaluation.evaluate import evaluate
from launcher.files import RUNS
from launcher.jobs.infer import infer
from launcher.jobs.refine import refine
from launcher.run.folder import Run
from launcher.training.inputs import Inputs
from launcher.training.run import train
from shards.schema import DataError


def again(tiny_config, method, *overrides):
    """Train to the end; then take the last checkpoint away, so that a start has something to go on with."""
    train(tiny_config(method, *overrides))
    run = RUNS / ("student" if method == "distill" else "teacher")
    shutil.rmtree(run / "step_0000004")
    return run


def test_staged_data_another_mount_point_and_another_name_go_on(in_tmp, tiny_config, scenes):
    run = again(tiny_config, "classify")
    shutil.copytree(scenes, in_tmp / "staged")
    for overrides in (
        ["data.train=staged/train"],
        [f"data.train={in_tmp / 'staged/train'}", "data.val=staged/val"],
        [f"data.train={scenes / 'train'}"],
    ):
        train(tiny_config("classify", *overrides))
        shutil.rmtree(run / "step_0000004")
    run.rename(RUNS / "renamed")
    train(tiny_config("classify", "name=renamed"))
    assert (RUNS / "renamed/step_0000004").is_dir() and not run.exists()


def test_a_teacher_that_was_renamed_is_the_same_and_another_is_not(in_tmp, tiny_config):
    train(tiny_config("classify"))
    run = again(tiny_config, "distill")
    (RUNS / "teacher").rename(RUNS / "elsewhere")
    train(tiny_config("distill", "teacher=runs/elsewhere"))
    shutil.rmtree(run / "step_0000004")
    train(tiny_config("classify", "train.seed=1"))
    with pytest.raises(RunError, match=r"teacher: step_0000004, sha256 \w+ -> step_0000004, sha256 \w+\): to resume"):
        train(tiny_config("distill"))


def test_weights_that_moved_are_the_same_and_others_are_not(in_tmp, tiny_config):
    backbone = Inputs(tiny_config("classify"))
    torch.save(build_backbone(backbone).state_dict(), "w.pth")
    run = again(tiny_config, "classify", "model.weights=w.pth")
    Path("w.pth").rename("moved.pth")
    train(tiny_config("classify", "model.weights=moved.pth"))
    shutil.rmtree(run / "step_0000004")
    torch.save(build_backbone(backbone).state_dict(), "other.pth")
    with pytest.raises(RunError, match=r"model\.weights: sha256 \w+ -> sha256 \w+"):
        train(tiny_config("classify", "model.weights=other.pth"))


def build_backbone(inputs):
    from launcher.run.build import build_method

    return build_method(inputs.config, inputs.class_set).student.backbone


def test_what_is_learned_from_is_still_asked_for(in_tmp, tiny_config, scenes):
    run = again(tiny_config, "classify")
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**about, "dataset_fingerprint": "0" * 16}))
    with pytest.raises(RunError, match="dataset fingerprint: 0000000000000000 -> ") as told:
        train(tiny_config("classify"))
    assert "remove the folder" not in str(told.value) and "runs/teacher/config.yaml has" in str(told.value)


def test_jobs_know_images_by_their_fingerprint_and_note_where_they_lie_now(run, scenes, tmp_path):
    shutil.copytree(scenes, tmp_path / "first")
    infer(run, "val", tmp_path / "first/val", [], "moved")
    before = {path.name: path.read_bytes() for path in (run / "cams@moved/val").glob("*.tar")}
    (tmp_path / "first").rename(tmp_path / "second")
    settings = RefineConfig(workers=1, chain=(), cams=("class_map",))
    with pytest.raises(RunError, match=r"first/val, which are gone; if they moved, .* data\.val=PLACE"):
        refine(run, ["val"], settings, cams="moved")
    infer(run, "val", tmp_path / "second/val", [], "moved")
    assert {path.name: path.read_bytes() for path in (run / "cams@moved/val").glob("*.tar")} == before
    (out,) = refine(run, ["val"], settings, cams="moved")
    infer(run, "val", scenes / "val", [], "moved")
    assert refine(run, ["val"], settings, cams="moved") == [out]
    made_of = json.loads((out / "job.json").read_text())
    assert made_of["shards"] == str((scenes / "val").resolve())
    with pytest.raises(RunError, match=r"made with other settings \(fingerprint"):
        infer(run, "val", scenes / "tune", [], "moved")


def test_masks_of_moved_images_are_the_same_target(run, scenes, tmp_path, tiny_config):
    def identity():
        config = tiny_config("classify", "method={name: supervised}", "cam.kinds=[seg]", "data.masks=masks")
        return Inputs(config).learns_from["data.masks"]

    infer(run, "train", scenes / "train")
    (out,) = refine(run, ["train"], RefineConfig(workers=1, chain=(), cams=("class_map",)))
    Path("masks").symlink_to(out)
    first = identity()
    shutil.copytree(scenes, tmp_path / "other")
    for folder in (run / "cams/train", out):
        made_of = json.loads((folder / "job.json").read_text())
        (folder / "job.json").write_text(json.dumps({**made_of, "shards": str(tmp_path / "other/train")}))
    assert identity() == first
    (out / "job.json").write_text(json.dumps({**made_of, "threshold": 0.9}))
    assert identity() != first and Run(run).config


def test_a_run_is_evaluated_where_its_data_was_moved(in_tmp, tiny_config, scenes):
    shutil.copytree(scenes, in_tmp / "first")
    first = [f"data.{split}={in_tmp / 'first' / split}" for split in ("train", "val", "tune")]
    train(tiny_config("classify", *first))
    run = RUNS / "teacher"
    infer(run, "val", in_tmp / "first/val")
    infer(run, "tune", in_tmp / "first/tune")
    before = evaluate(run)["sources"]
    (in_tmp / "first").rename(in_tmp / "second")
    with pytest.raises(DataError, match="first"):
        evaluate(run)
    assert evaluate(run, ["data.val=second/val", "data.tune=second/tune"])["sources"] == before
