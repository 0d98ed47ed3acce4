"""Runs, exported files and their defaults; several classes; the command and the entry from Python."""

import io
import json
import math
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.command import wsss_ends
from support.methods import build
from support.networks import tiny_vit
from support.photographs import Photographs
from support.places import PYTHONPATH
from support.squares import PETS
from support.tiny import CNN_SIZE

import wsss
from launcher.config.options import Named
from launcher.errors import ConfigError, RunError
from launcher.evaluation.evaluate import evaluate
from launcher.files import RUNS
from launcher.predict.defaults import settle
from launcher.predict.export import export, write_weights
from launcher.predict.facts import licence_note, training_size
from launcher.predict.model import Model, load_model
from launcher.predict.predictor import Predictor
from launcher.predict.run import predict
from launcher.predict.settings import Wishes
from launcher.run.folder import EVALUATION
from launcher.training.run import train
from shards.write import write_split
from wsss.methods.classify import Classify
from wsss.refine.crf import dense_crf


def noise(size=(40, 48), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)


@pytest.mark.parametrize("kind", ["project", "class_map", "grad", "attention"])
def test_an_exported_file_predicts_what_its_run_does(run, kind):
    evaluate(run)
    export(run, Path("student.safetensors"))
    of_run, of_file = load_model(run, "cpu"), load_model(Path("student.safetensors"), "cpu")
    assert of_file.class_set == of_run.class_set and of_run.evaluation is not None
    of_run.evaluation["tune"]["folder"] = ".../tune"  # a file does not say where things lay
    assert of_file.evaluation == of_run.evaluation
    assert settle(of_file, Wishes()).describe() == settle(of_run, Wishes()).describe()
    found = [wsss.load(path, kind=kind, gate=0.0).predict(noise()) for path in (run, "student.safetensors")]
    np.testing.assert_allclose(found[0].scores, found[1].scores, atol=1e-5)
    np.testing.assert_allclose(found[0].probs, found[1].probs, atol=1e-6)


def test_a_network_that_gives_no_maps_is_not_exported(in_tmp, scenes, tiny_config):
    options = f"widths: [4, 4, 4], affinity_dim: 8, timm_options: {CNN_SIZE}"
    model = f"model={{name: affinity_net, timm_name: resnet10t, {options}}}"
    data = [f"data.train={scenes / 'val'}", "data.val=null", "data.tune=null", "data.image_size=64"]
    train(tiny_config("classify", "method={name: affinity, radius: 2}", model, *data, "tracking.to=[]"))
    for name in ("a.onnx", "a.safetensors"):
        with pytest.raises(ConfigError, match="runs/teacher: method affinity gives no maps"):
            export(RUNS / "teacher", Path(name))


def test_the_checkpoint_that_was_chosen_is_exported_and_by_itself_the_newest(in_tmp, tiny_config):
    train(tiny_config("classify", "tracking.to=[]", "data.val=null", "data.tune=null"))
    for step in (2, 4):
        chosen = RUNS / f"teacher/step_{step:07d}"
        written = export(RUNS / "teacher", Path(f"{step}.safetensors"), checkpoint=None if step == 4 else chosen)
        found, right = load_model(written.path, "cpu"), load_file(chosen / "model.safetensors")
        assert found.checkpoint == chosen.name
        assert all(torch.equal(right[name], value) for name, value in found.method.state_dict().items())


def test_a_run_is_read_from_any_folder_with_the_teacher_that_lies_beside_it(run, tmp_path, monkeypatch):
    there, here = run.absolute(), wsss.load(run, gate=0.0).predict(noise())
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    np.testing.assert_array_equal(wsss.load(there, gate=0.0).predict(noise()).mask, here.mask)
    (there.parent / "teacher").rename(there.parent / "gone")
    with pytest.raises(RunError, match="runs/teacher: no run here"):
        wsss.load(there)


def test_what_python_asks_for_and_does_not_exist_is_told(run):
    model = wsss.load(run)
    assert repr(model).splitlines()[0] == f"runs/student ({model.model.checkpoint}), classes {model.classes[0]}"
    assert repr(model).splitlines()[1:] == model.settings.describe()
    for several in ([noise(), noise()], torch.zeros(40, 48, 3, dtype=torch.uint8)):
        with pytest.raises(
            ValueError, match=f"image is a {type(several).__name__}; wanted one picture, file or .*array"
        ):
            model.predict(several)
    with pytest.raises(ConfigError, match="gait: wsss.load has no such option; there are kind, threshold, gate"):
        wsss.load(run, gait=0.3)
    with pytest.raises(ConfigError, match="--device tpu: wanted auto, cpu or cuda"):
        wsss.load(run, device="tpu")


def test_a_file_that_cannot_predict_is_told(run):
    save_file({}, "old.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunError, match="old.safetensors: does not say how its network was trained; write it again"):
        load_model(Path("old.safetensors"))
    Path("no.safetensors").write_text("?")
    with pytest.raises(RunError, match="no.safetensors: is not a file of `wsss export`"):
        load_model(Path("no.safetensors"))
    with pytest.raises(RunError, match="runs/none: no run here"):
        load_model(Path("runs/none"))


def test_defaults_come_from_the_evaluation_and_say_so(run):
    model = load_model(run, "cpu")
    said = settle(model, Wishes()).describe()
    assert said[0] == "kind grad (first of cam.kinds)"
    assert said[1] == "threshold 0.30 (evaluate.threshold of its config: no threshold was tuned for grad)"
    evaluate(run)
    report = json.loads((run / EVALUATION).read_text())
    report["tune"]["images_shown"] = 20  # of fewer it would be told
    report["headline"]["source"], report["sources"]["project"]["tuned"]["threshold"] = "project", 0.42
    (run / EVALUATION).write_text(json.dumps(report))
    said = settle(load_model(run, "cpu"), Wishes()).describe()
    assert said[:2] == [
        "kind project (headline of its evaluation)",
        "threshold 0.42 (tuned for project in its evaluation)",
    ]
    assert "gate 0.50" in said[2]
    report["sources"]["project+crf"] = {"fixed": {"threshold": 0.3}, "tuned": {"threshold": 0.2}}
    (run / EVALUATION).write_text(json.dumps({**report, "gate": {"tuned": 0.37}}))
    said = settle(load_model(run, "cpu"), Wishes(refine="crf")).describe()
    assert said[1:3] == [
        "threshold 0.20 (tuned for project+crf in its evaluation)",
        "gate 0.37 (tuned by image labels in its evaluation)",
    ]
    report["sources"]["project"]["tuned"]["threshold"] = 0.0
    (run / EVALUATION).write_text(json.dumps(report))
    assert (
        "threshold 0.30 (evaluate.threshold of its config: the one tuned for project, 0.00, "
        "is so low that tuning found nothing)" in settle(load_model(run, "cpu"), Wishes()).describe()
    )
    refined = settle(model, Wishes(refine="crf"))
    assert "threshold 0.30 (refine.threshold of its config: no threshold was tuned for grad+crf)" in refined.describe()
    assert [step.name for step in refined.chain] == ["crf"]


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"kind": "saliency"}, "--kind saliency: this model has class_map, project, attention, grad, layer"),
        ({"threshold": 3.0}, "--threshold 3.0: wanted 0 to 1"),
        ({"refine": "sam"}, "--refine sam: needs what `wsss cues` computes; wanted none or crf"),
        ({"refine": "magic"}, "--refine magic: there is no such refiner; wanted none or crf"),
        ({"view": "all"}, "--view all: wanted auto or squash or windows or whole"),
        ({"view": "squash", "scale": 0.5}, "--scale has no effect on squashed frames"),
        ({"scale": 0.0}, "--scale 0: wanted more than 0"),
        ({"scale": 8.5}, "--scale 8.5: wanted up to 8"),
        ({"scale": math.inf}, "--scale inf: wanted more than 0"),
        ({"every_s": math.inf}, "--every inf: wanted more than 0"),
        ({"smooth_s": 1000.0}, "--smooth 1000: wanted 0 to 60 seconds"),
    ],
)
def test_a_wish_that_does_not_fit_is_told(run, wishes, message):
    with pytest.raises(ConfigError, match=message):
        settle(load_model(run, "cpu"), Wishes(**wishes))


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ({"name": "vit"}, "the weights began random: "),
        ({"name": "cnn", "weights": "w.pth"}, "the weights began with w.pth: their licence is that of this source"),
        (
            {"name": "cnn", "timm_name": "resnet50.a1_in1k", "weights": "timm"},
            "timm's resnet50.a1_in1k, https://huggingface.co/timm/resnet50.a1_in1k, apache-2.0 as timm states it: ",
        ),
        (
            {"name": "frozen", "weights": "timm", "timm_name": "resnet50", "second": "none", "second_weights": "b.pth"},
            "timm's resnet50, https://huggingface.co/timm/resnet50.a1_in1k, apache-2.0 as timm states it and b.pth: "
            "their licence is those of these sources",
        ),
    ],
)
def test_the_licence_is_by_itself_that_of_the_weights_that_a_run_began_with(tiny_config, options, note):
    assert note in licence_note(tiny_config("classify").model_copy(update={"model": Named(**options)}))


def test_the_size_of_training_images_is_known_where_they_were_larger_than_the_view(tiny_config, tmp_path):
    assert training_size(tiny_config("classify")) is None  # 32 px, as the view
    assert training_size(tiny_config("classify", "data.image_size=16")) == (32, 32)
    assert training_size(tiny_config("classify", "data.image_size=16", "data.train=gone")) is None
    write_split(Photographs("train", 3, with_masks=False), tmp_path, "train", "label")
    sizes = "data.train=" + str(tmp_path / "train")
    assert training_size(tiny_config("classify", "data.image_size=16", sizes)) == (40, 37)  # of heights, of widths
    larger = tiny_config("classify", "data.image_size=64", sizes)
    assert training_size(larger) is None
    crops = larger.model_copy(update={"method": larger.method.model_copy(update={"name": "toco"})})
    assert training_size(crops) == (40, 37)  # crops have the scale of the images, which nobody squashed


def test_several_classes_have_a_row_a_colour_and_an_id_each(run):
    model = load_model(run, "cpu")
    pets = Model(**{**model.__dict__, "class_set": PETS, "method": Classify(tiny_vit(2)).eval()})
    found = Predictor(pets, settle(pets, Wishes(kind="class_map", gate=0.0, threshold=0.1))).predict(noise())
    assert found.classes == ("cat", "dog") and found.shown == (1, 2) and found.scores.shape == (2, 40, 48)
    assert set(np.unique(found.mask)) <= {0, 1, 2} and len(found.probs) == 2


def test_a_network_that_segments_draws_what_is_likelier_than_the_background_without_a_gate(run):
    model = load_model(run, "cpu")
    segmenter = {**model.__dict__, "class_set": PETS, "method": build("supervised", classes=2).eval()}
    settled = settle(pets := Model(**segmenter), Wishes())
    assert settled.describe()[:3] == [
        "kind seg (the network segments)",
        "threshold likelier than the background (default of a network that segments)",
        "gate 0.00 (its maps are probabilities themselves)",
    ]
    found = Predictor(pets, settled).predict(noise())
    background_1HW = 1 - found.scores.sum(0, keepdims=True)
    assert found.shown == (1, 2) and np.array_equal(
        found.mask, np.concatenate([background_1HW, found.scores]).argmax(0)
    )
    evaluation = {"headline": {"source": "segments"}, "sources": {}, "checkpoint": "", "tune": None, "gate": None}
    said = settle(Model(**{**segmenter, "evaluation": evaluation}), Wishes(threshold=0.6, gate=0.2)).describe()
    assert said[0] == "kind seg (headline of its evaluation)"
    assert said[1:3] == ["threshold 0.60 (as asked)", "gate 0.20 (as asked)"]


def test_an_image_may_be_an_array_a_picture_or_a_path(run):
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(np.rot90(noise())).save("a.png", exif=turned)
    model = wsss.load(run)
    masks = [model.predict(image).mask for image in (noise(), Image.open("a.png"), "a.png", Path("a.png"))]
    assert all(np.array_equal(mask, masks[0]) for mask in masks) and masks[0].shape == (40, 48)
    empty = np.zeros((0, 4, 3), np.uint8)
    for wrong in (np.zeros((4, 3), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), empty):
        with pytest.raises(ValueError, match=rf"image is {re.escape(f'{wrong.shape} {wrong.dtype}')}; wanted .*RGB"):
            model.predict(wrong)
    Path("cut.png").write_bytes(Path("a.png").read_bytes()[:600])
    for wrong, told in (
        ("cut.png", "cut.png: image does not decode"),
        (Image.open("cut.png"), "cut.png: image does not decode"),
        (Image.open(io.BytesIO(Path("cut.png").read_bytes())), "picture: image does not decode"),
        (Image.new("LAB", (4, 4)), "picture: image has mode LAB"),
        (Image.new("RGB", (0, 0)), "with at least one pixel"),
        ("none.png", "none.png: cannot be read"),
    ):
        with pytest.raises(ValueError, match=told):
            model.predict(wrong)
    picture = Image.open("a.png")
    for _ in range(2):  # it stays open
        assert np.array_equal(model.predict(picture).mask, masks[0])


def test_threads_share_a_model_and_nothing_else_of_the_process_changes(run):
    def state():
        return torch.get_rng_state().tolist(), torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()

    before = state()
    model = wsss.load(run, kind="grad", gate=0.0)
    images = [noise(seed=n) for n in range(16)]
    alone = [model.predict(image) for image in images]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(model.predict, 4 * images))
    for found, right in zip(together, 4 * alone, strict=True):
        assert np.array_equal(found.mask, right.mask) and np.array_equal(found.scores, right.scores)
    assert state() == before


def test_python_and_the_command_give_the_same_mask(run):
    Image.fromarray(noise()).save("a.png")
    predict(["a.png"], run, Path("out"), Wishes(gate=0.0))
    mask = wsss.load(run, gate=0.0).predict("a.png").mask
    assert mask.any() and np.array_equal(mask, np.asarray(Image.open("out/masks/a.png")))


def test_a_refined_prediction_has_the_scores_that_the_refiner_makes_of_the_plain_ones(run):
    plain, refined = (wsss.load(run, gate=0.0, refine=refine).predict(noise()) for refine in ("none", "crf"))
    np.testing.assert_allclose(refined.scores, dense_crf(noise(), plain.scores), atol=1e-6)
    assert not np.array_equal(refined.mask, plain.mask)
    content = yaml.safe_load((run / "config.yaml").read_text())
    content["refine"] |= {"chain": [{"name": "crf", "iterations": 1}], "threshold": 0.4}
    (run / "config.yaml").write_text(yaml.safe_dump(content))
    once = wsss.load(run, gate=0.0, refine="crf")
    np.testing.assert_allclose(once.predict(noise()).scores, dense_crf(noise(), plain.scores, iterations=1), atol=1e-6)
    assert once.settings.threshold == 0.4 and wsss.load(run).settings.threshold == 0.3


def test_the_command_ends_with_0_with_3_where_something_is_left_out_and_with_2_for_a_mistake(run, monkeypatch, capsys):
    Path("frames").mkdir()
    Image.fromarray(noise()).save("frames/a.png")
    command = ("predict", "frames", "--model", run, "--out", "out", "--gate", 0)
    said, code = wsss_ends(*command, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0 and "1 frame: smoke in 1" in said and "look at out/contact_sheet.html" in said
    Path("frames/b.png").write_text("?")
    said, code = wsss_ends(*command, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 3 and "left out: frames/b.png" in said and "1 could not be read: out/failed.csv" in said
    said, code = wsss_ends(*command, "--every", "often", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2 and "--every often: wanted seconds" in said
    assert Path("out/frames.csv").read_text().count("\n") == 2  # the header and a.png


def test_importing_wsss_imports_no_launcher_and_knows_no_other_name():
    code = "import sys, wsss, wsss.metrics.counts\nassert not [m for m in sys.modules if m.startswith('launcher')]"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": PYTHONPATH})
    with pytest.raises(AttributeError, match="module 'wsss' has no attribute 'lode'"):
        _ = wsss.lode


def test_an_exported_file_has_the_same_bytes_each_time(tmp_path):
    facts = {f"fact {n}": "über, {}" * n for n in range(12)}
    weights = {"b": torch.arange(3.0), "a": torch.ones(2, 2)}
    written = []
    for n in range(4):
        write_weights(tmp_path / f"{n}.safetensors", weights, facts)
        written.append((tmp_path / f"{n}.safetensors").read_bytes())
    assert len({*written}) == 1
    (tmp_path / "plain").touch()
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1
    with safe_open(tmp_path / "0.safetensors", "pt") as opened:
        assert opened.metadata() == facts
        assert all(torch.equal(opened.get_tensor(name), weights[name]) for name in weights)
