"""One small run through all rooms: train, infer, refine, evaluate, report."""

import csv
import hashlib
import json
import shutil

import numpy as np
import pytest
import torch

from launcher.config.options import Named
from launcher.config.sections import RefineConfig
from launcher.errors import RunError
from launcher.evaluation.evaluate import count_predictions, evaluate
from launcher.evaluation.measure import Truth
from launcher.evaluation.report import write_report
from launcher.evaluation.sources import ScorePrediction, ScoreSource
from launcher.evaluation.thresholds import Thresholds, inside_boxes
from launcher.files import RUNS
from launcher.jobs import output as jobs
from launcher.jobs.infer import infer
from launcher.jobs.refine import refine
from launcher.jobs.scores import Scores, read_scores
from launcher.run.build import load_trained
from launcher.run.folder import Run
from launcher.training.run import train
from shards.folder import ShardFolder
from shards.schema import DataError
from shards.sources.synthetic import Synthetic
from shards.write import write_split
from wsss.maps.cam import normalise_cam
from wsss.metrics.counts import THRESHOLDS


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.tar")}


def test_cams_are_stored_for_every_image_at_their_own_grid(run, scenes):
    val = ShardFolder(scenes / "val")
    found = [pair for shard in val.index.shards for pair in read_scores(val, run / "cams/val", shard.name, "grad")]
    assert [number for number, _ in found] == list(range(len(val)))
    found = [scores for _, scores in found]
    assert [scores.key for scores in found] == val.keys
    assert all(set(scores.maps) == {"grad", "class_map", "project"} for scores in found)
    assert all(cam.shape == (1, 4, 4) and 0 <= cam.min() <= cam.max() <= 1 for s in found for cam in s.maps.values())


def test_a_stored_cam_is_the_trained_students(run, scenes):
    method = load_trained(Run(run)).method
    val = ShardFolder(scenes / "val")
    number = 7
    name = val.index.shards[val.shard_of[number]].name
    scores = dict(read_scores(val, run / "cams/val", name, "project"))[number]
    image = torch.from_numpy(val.image(number).copy()).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        out = method.student(image)
        cam = normalise_cam(method.maps_of(out)["project"])[0]
    np.testing.assert_allclose(scores.maps["project"], cam.numpy(), atol=2e-3)
    assert scores.cls_probs[0] == pytest.approx(out.cls_logits_BK.sigmoid().item(), abs=1e-5)


def test_inference_goes_on_where_it_was_killed_and_gives_the_same_bytes(run, scenes):
    before = digests(run / "cams/val")
    assert len(before) == 12
    for name in sorted(before)[3:]:
        (run / "cams/val" / name).unlink()
    kept = (run / "cams/val" / sorted(before)[0]).stat().st_mtime_ns
    infer(run, "val", scenes / "val")
    assert digests(run / "cams/val") == before
    assert (run / "cams/val" / sorted(before)[0]).stat().st_mtime_ns == kept


def test_masks_that_are_gone_are_made_again_with_the_same_bytes(run):
    settings = RefineConfig(workers=1, chain=(Named(name="crf", gamma=2.0),), threshold=0.5)
    folders = refine(run, ["val"], settings)
    assert [folder.parent.name for folder in folders] == ["grad+crf", "class_map+crf", "project+crf"]
    before = digests(folders[2])
    assert len(before) == 12
    (folders[2] / "val-00003.tar").unlink()
    refine(run, ["val"], settings)
    assert digests(folders[2]) == before


def test_masks_are_scores_at_the_images_size_and_where_they_reach_the_threshold(run, scenes):
    (folder,) = refine(run, ["val"], RefineConfig(workers=1, cams=("project",), chain=(), threshold=0.4))
    assert folder == run / "masks/project+threshold/val"
    for _, scores in read_scores(ShardFolder(scenes / "val"), folder, "val-00000.tar", "refined"):
        assert scores.mask.shape == (32, 32) and scores.maps["refined"].shape == (1, 32, 32)
        # scores are stored in float16, so a pixel right at the threshold may differ
        sure = np.abs(scores.maps["refined"][0] - 0.4) > 1e-3
        assert np.array_equal(scores.mask[sure], (scores.maps["refined"][0] >= 0.4)[sure])


def test_refining_with_other_settings_or_unknown_kinds_is_refused(run):
    refine(run, ["val"], RefineConfig(workers=1, cams=("grad",), chain=()))
    with pytest.raises(RunError, match="made with other settings .threshold: 0.3, now 0.5"):
        refine(run, ["val"], RefineConfig(workers=1, cams=("grad",), chain=(), threshold=0.5))
    with pytest.raises(RunError, match="'saliency'. are not among the inferred kinds"):
        refine(run, ["val"], RefineConfig(workers=1, cams=("saliency",), chain=()))
    with pytest.raises(RunError, match="no CAMs here; run `wsss infer"):
        refine(run, ["train"], RefineConfig(workers=1))


def test_settings_stand_side_by_side_under_their_own_names(run):
    for gamma in (1.0, 4.0):
        settings = RefineConfig(workers=1, cams=("project",), chain=(Named(name="crf", gamma=gamma),))
        refine(run, ["val"], settings, name=f"g{gamma:g}")
    assert {folder.name for folder in (run / "masks").iterdir()} == {"project+g1", "project+g4"}
    chains = evaluate(run)["sources"]["project+g4"]["chain"]
    assert [step["gamma"] for step in chains] == [4.0]


def test_figures_say_the_views_that_the_cams_were_made_with(run, scenes):
    shutil.rmtree(run / "cams/val")
    infer(run, "val", scenes / "val", ["cam.scales=[0.5,1]", "cam.flip=true"])
    assert "scales 0.5, 1 + flip" in evaluate(run)["protocol"]
    with pytest.raises(RunError, match="made with other settings"):
        infer(run, "val", scenes / "val")


def test_a_damaged_cam_shard_is_named_and_leaves_no_mask_shard(run):
    path = run / "cams/val/val-00001.tar"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(RunError, match="1 of 12 shards failed"):
        refine(run, ["val"], RefineConfig(workers=1, cams=("grad",), chain=()))
    assert not (run / "masks/grad+threshold/val/val-00001.tar").exists()
    assert (run / "masks/grad+threshold/val/val-00002.tar").exists()


def test_evaluation_and_report(run):
    refine(run, ["val", "tune"], RefineConfig(workers=1, cams=("project",), chain=(Named(name="crf"),)))
    report = evaluate(run)
    assert set(report["sources"]) == {"grad", "class_map", "project", "project+crf"}
    assert [step["name"] for step in report["sources"]["project+crf"]["chain"]] == ["crf"]
    for figures in report["sources"].values():
        assert figures["protocol"].endswith("training seed 0")  # one class has a threshold of its own
        assert figures["images"] == 24 and 0 < figures["images_with_class"] < 24
        for choice in ("fixed", "tuned"):
            at = figures[choice]
            assert 0 <= at["per_image_iou"] <= figures["oracle_per_image_iou"] <= 1
            assert at["per_image_iou"] <= figures["best_on_val"]["per_image_iou"]
            assert at["false_alarm_area_gated"] <= at["false_alarm_area"]
            assert 0 <= at["chimney_area"] <= 1
    assert json.loads((run / "evaluation.json").read_text()) == report
    rows = list(csv.DictReader((run / "per_image.csv").open()))
    assert len(rows) == 4 * 24
    shown = [float(r["iou_fixed"]) for r in rows if r["source"] == "grad" and float(r["truth_area"]) > 0]
    assert np.mean(shown) == pytest.approx(report["sources"]["grad"]["fixed"]["per_image_iou"], abs=1e-4)

    page = write_report(RUNS).read_text()
    assert "student" in page and "chimney area" in page and page.count("<svg") == 5
    assert all(title in page for title in ("Per-image IoU", "Precision over recall", "False-alarm area", "Calibration"))
    assert "Training, " not in page  # one point is no plot
    assert "images with smoke" in page and report["headline"] == {"source": "grad", "choice": "fixed"}  # tune has few
    assert page.count("data:image/jpeg") == 8 * 3 + 1  # strip and gallery of the student; the teacher has no figures


def test_figures_need_cams_and_truth_first(in_tmp, tiny_config):
    train(tiny_config("classify", "train.steps=0"))
    with pytest.raises(RunError, match="no CAMs or masks of 'val' here; run `wsss infer runs/teacher`"):
        evaluate(RUNS / "teacher")
    with pytest.raises(RunError, match="no run with metrics"):
        write_report(RUNS)
    with pytest.raises(RunError, match="no run here .*below it are runs/teacher"):
        evaluate(RUNS)


def scored(key, cam, prob=0.9, group="g"):
    return Scores(key=key, group=group, class_ids=(1,), cls_probs=(prob,), maps={"x": np.array([cam])})


def add(measure, scores, truth_HW, regions):
    measure.add(ScorePrediction(scores, "x", 0.5), Truth(scores.key, scores.group, truth_HW, regions))


def test_figures_by_hand():
    tally = Thresholds()
    smoke, clear = np.array([[1, 1, 0, 0]]), np.zeros((1, 4), dtype=int)
    add(tally, scored("a", [[0.9, 0.1, 0.9, 0.0]]), smoke, {"chimney": [(0, 1, 1, 4)]})
    add(tally, scored("b", [[0.6, 0.0, 0.0, 0.0]], prob=0.1), clear, {"chimney": []})
    at = tally.figures_at(0.5)
    assert at["per_image_iou"] == pytest.approx(1 / 3)
    assert at["pooled_iou"] == pytest.approx(1 / 4)
    assert at["false_alarm_area"] == 0.25 and at["false_alarm_area_gated"] == 0.0
    assert at["chimney_area"] == 0.5  # of the chimney's two pixels that no smoke hides, one is predicted
    # two of three predicted right at 0.10, where the first image is 2/3; no threshold is better
    assert tally.best() == (0.01, pytest.approx(2 / 3))
    assert tally.bounds_and_curve()["best_on_val"] == {"threshold": 0.01, "per_image_iou": pytest.approx(2 / 3)}
    assert THRESHOLDS[50] == 0.5


def test_gating_takes_the_classifiers_word_first():
    tally = Thresholds()
    add(tally, scored("a", [[0.9, 0.9]], prob=0.4), np.array([[1, 0]]), {})
    assert tally.figures_at(0.5)["per_image_iou"] == 0.5
    assert tally.figures_at(0.5)["per_image_iou_gated"] == 0.0


def test_an_image_without_a_map_predicts_nothing():
    tally = Thresholds()
    without = Scores(key="a", group="g", class_ids=(), cls_probs=(0.9,), maps={"x": np.zeros((0, 2, 2))})
    add(tally, without, np.array([[1, 0]]), {})
    assert tally.figures_at(0.5)["per_image_iou"] == 0.0


def test_tallies_of_two_ranks_join_to_that_of_one():
    rng = np.random.default_rng(0)
    images = [(scored(str(n), rng.random((3, 4)), group=str(n % 3)), rng.integers(0, 2, (3, 4))) for n in range(7)]
    one, ranks = Thresholds(), [Thresholds(), Thresholds()]
    for n, (scores, truth) in enumerate(images):
        for tally in (one, ranks[n % 2]):
            add(tally, scores, truth, {"chimney": [(0, 2, 0, 2)]})
    ranks[0].extend(ranks[1])
    joined, alone = ranks[0].figures_at(0.5), one.figures_at(0.5)
    assert joined.keys() == alone.keys()
    assert all(joined[name] == pytest.approx(alone[name], nan_ok=True) for name in alone)


def test_inside_keeps_only_background_pixels_of_the_boxes():
    truth = torch.tensor([[0, 1, 255, 0]])
    assert inside_boxes([(0, 1, 0, 3)], truth).tolist() == [[0, 255, 255, 255]]


def test_tallies_name_shards_that_do_not_belong_together(run, scenes, tmp_path):
    other = shutil.copytree(run / "cams/tune", tmp_path / "cams/val")
    for path in list(other.glob("tune-*.tar")):
        path.rename(other / path.name.replace("tune", "val"))
    with pytest.raises(RunError, match="val: made of other images"):
        count_predictions([(ShardFolder(scenes / "val"), [ScoreSource("grad", other, "grad")])], Run(run).config)
    with pytest.raises(DataError, match="holds 'tune-"):
        list(read_scores(ShardFolder(scenes / "val"), other, "val-00000.tar", "grad"))


def test_cams_of_images_that_were_written_anew_are_refused(run, scenes, tmp_path, monkeypatch):
    """Same names, same keys."""
    source = Synthetic(split="val", num_images=24, size=32, cooccurrence=0.8, with_masks=True, seed=7)
    write_split(source, tmp_path, "val", "pixel", num_shards=12)
    inferred, config = jobs.read_made_of(run / "cams/val"), Run(run).config
    monkeypatch.setattr(jobs, "read_made_of", lambda _: {**inferred, "shards": str(tmp_path / "val")})
    with pytest.raises(RunError, match=r"cams/val: made of other images \(fingerprint .*infer again"):
        refine(run, ["val"], RefineConfig(workers=1, cams=("grad",), chain=()))
    source = ScoreSource("grad", run / "cams/val", "grad")
    with pytest.raises(RunError, match="cams/val: made of other images"):
        count_predictions([(ShardFolder(tmp_path / "val"), [source])], config)


def test_shards_of_other_classes_are_refused(run, scenes, tmp_path):
    folder = shutil.copytree(scenes / "val", tmp_path / "fog")
    index = ShardFolder(folder).index.model_copy(update={"classes": ("fog",)})
    index.save(folder)
    with pytest.raises(RunError, match=r"has the classes \('fog',\), but .* was trained on \('smoke',\)"):
        infer(run, "fog", folder)
