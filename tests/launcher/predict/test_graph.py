"""Exported graphs: the same masks as the run's, what the files say of themselves, and what they cannot do."""

import json
import logging
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from support.methods import build
from support.networks import tiny_swin
from support.places import ROOT

import wsss
from launcher.config.options import Named
from launcher.errors import ConfigError, RunError
from launcher.evaluation.evaluate import evaluate
from launcher.predict import graph
from launcher.predict.export import export
from launcher.predict.model import load_model
from launcher.run.start import read_start
from wsss.methods.classify import Classify
from wsss.models.base import Outputs


@pytest.fixture(autouse=True)
def no_trace(monkeypatch):
    """pytest's own handler makes torch write down every line that it traces."""
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)


def noise(size=(40, 56), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)


def facts_of(path):
    if path.suffix == ".onnx":
        return onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    if path.suffix == ".pt2":
        extra = {"wsss.json": ""}
        torch.export.load(path, extra_files=extra)
        return json.loads(extra["wsss.json"])
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_dir_names_what_is_offered():
    assert {"load", "__version__"} <= {*dir(wsss)}


def test_run_safetensors_pt2_and_onnx_give_the_same_masks(run):
    evaluate(run)
    files = [Path("student.safetensors"), Path("student.pt2"), Path("student.onnx")]
    for file in files:
        written = export(run, file, kind="project", licence="as the photographs")
        assert ("differ from the run's by" in written.words) == (file.suffix != ".safetensors")
    model = onnx.load(files[2])  # torch's notes have sets in any order and places of this machine: bytes would differ
    assert not [node.name for node in model.graph.node if node.metadata_props] and not model.graph.metadata_props
    assert not {prop.key for prop in model.metadata_props} - set(facts_of(files[0]))
    options = {"view": "windows", "scale": 1.0, "gate": 0.0, "threshold": 0.6}
    for kind in ("project", "class_map"):
        of_run = wsss.load(run, kind=kind, **options)
        for file in files:
            of_file = wsss.load(file, kind=kind, **options)
            for image in (noise(), noise((16, 80), seed=1)):
                right, found = of_run.predict(image), of_file.predict(image)
                assert 0 < right.mask.mean() < 1 and (right.mask != found.mask).mean() < 1e-3
                np.testing.assert_allclose(found.scores, right.scores, atol=1e-4)
                np.testing.assert_allclose(found.probs, right.probs, atol=1e-5)
    by_itself = wsss.load(run, kind="project").settings
    for file in files:
        facts = facts_of(file)
        assert (facts["kind"], facts["licence"], facts["input_size"]) == ("project", "as the photographs", "32")
        assert json.loads(facts["kinds"]) == ["class_map", "project"] and json.loads(facts["classes"]) == ["smoke"]
        assert float(facts["threshold"]) == by_itself.threshold
        assert facts["threshold_origin"] == by_itself.origins["threshold"] and float(facts["gate"]) == 0.5
        assert len(json.loads(facts["mean"])) == len(json.loads(facts["std"])) == 3
        said = wsss.load(file).settings.describe()
        assert said == ["kind project (chosen when it was exported)", *by_itself.describe()[1:]]
    for file in files[1:]:
        with pytest.raises(
            ConfigError, match="--kind grad: .* class_map, project; grad, layer, attention need its run"
        ):
            wsss.load(file, kind="grad")
        with pytest.raises(RunError, match=r"8 x 80 px .* takes 16 or more"):
            wsss.load(file, view="whole", scale=0.5).predict(noise((16, 160)))
    with pytest.raises(ConfigError, match=r"--device cuda: student.onnx runs on the CPU"):
        load_model(files[2], "cuda")
    with pytest.raises(ConfigError, match=r"model.weights: student.onnx is a graph, .* give its run or a .safetensors"):
        read_start(Named(name="vit", weights="student.onnx"))


def test_the_page_draws_the_mask_with_onnxruntime_alone(run):
    export(run, Path("student.onnx"), kind="project")
    model = onnx.load("student.onnx")
    for prop in model.metadata_props:
        prop.value = "0.0" if prop.key == "gate" else prop.value
    onnx.save(model, "student.onnx")
    assert json.loads(facts_of(Path("student.onnx"))["packages"])["torch"] == torch.__version__.split("+")[0]
    page = (ROOT / "docs" / "predict.md").read_text()
    (code,) = [body for body in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "onnxruntime" in body]
    for seed, size in ((0, (40, 56)), (1, (80, 64))):
        Image.fromarray(noise(size, seed)).save("frame.jpg")
        names: dict = {}
        exec(code, names)
        right = wsss.load("student.onnx", gate=0.0).predict("frame.jpg").mask
        assert 0 < right.mean() < 1 and (names["mask"] != right).mean() < 1e-3


def test_a_run_whose_maps_need_gradients_says_what_to_take_instead(run):
    with pytest.raises(
        ConfigError,
        match="--format onnx: maps of kind grad .first of cam.kinds. need gradients.*--kind class_map or project",
    ):
        export(run, Path("student.onnx"))
    assert not Path("student.onnx").exists()


@pytest.mark.parametrize(
    ("out", "form", "message"),
    [
        ("a.bin", None, "--out a.bin: its ending names no format; wanted .safetensors, .pt2, .onnx"),
        ("a.onnx", "jit", "--format jit: wanted safetensors or torch or onnx"),
        ("a.onnx", "torch", "--out a.onnx: a file of --format torch must end in .pt2"),
    ],
)
def test_a_format_that_does_not_fit_the_name_is_told(run, out, form, message):
    with pytest.raises(ConfigError, match=message):
        export(run, Path(out), form)


@pytest.mark.parametrize("name", ["a.pt2", "a.onnx"])
def test_a_file_that_is_none_of_ours_is_told(in_tmp, name):
    Path(name).write_text("?")
    with pytest.raises(RunError, match=f"{name}: is not a file of `wsss export`"):
        load_model(Path(name))


@pytest.mark.parametrize("name", ["msee", "supervised"])
def test_a_graph_has_the_maps_of_networks_that_segment(name):
    method = build(name, classes=2).eval()
    kinds = ["seg", *(["class_map", "aux_map"] if name == "msee" else [])]
    whole = graph.Graph(method, kinds)
    program = graph.capture(whole, name).module()
    for batch, height, width in ((1, 16, 64), (3, 40, 24)):  # neither is the grid of the position table
        image = torch.rand(batch, 3, height, width)
        with torch.no_grad():
            wanted, found = whole(image), program(image)
        assert wanted[1].shape == (batch, 2, height // 8, width // 8)
        assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(wanted, found, strict=True))


class Strange(torch.nn.Module):
    stride = 8

    def forward(self, image):
        return Outputs(image.mean((2, 3)), image, image[..., : 8 * len(set(image.shape))])


def test_a_network_that_is_no_graph_is_told_with_what_to_take():
    method = build("classify")
    method.student = Strange()
    with pytest.raises(RunError, match=r"runs/a: Strange cannot be written as one graph .*; take --format safetensors"):
        graph.capture(graph.Graph(method, ["class_map"]), "runs/a")


class Drifting(torch.nn.Module):
    def forward(self, image):
        return Outputs(image.mean((2, 3)), image, image, maps={"class_map": image[..., ::8, ::8]})


def fails(*_):
    raise IndexError("out of data bounds\nat node 3")


@pytest.mark.parametrize(
    ("writes", "reads", "told"),
    [
        (fails, Drifting(), "ViT cannot be written as one graph .* .out of data bounds.; take --format safetensors"),
        (lambda *_: _[1].write_text("?"), fails, "ViT cannot be written as one graph .* .out of data bounds.; take"),
        (lambda *_: _[1].write_text("?"), Drifting(), "differs from the network by .* of its largest value"),
    ],
)
def test_a_file_that_is_not_its_network_never_appears(in_tmp, monkeypatch, writes, reads, told):
    whole = graph.Graph(build("classify", classes=3).eval(), ["class_map"])
    monkeypatch.setattr(graph, "save_torch", writes)
    monkeypatch.setattr(graph, "read_graph", lambda _: (None, SimpleNamespace(student=reads)))
    with pytest.raises(RunError, match=f"^a.pt2: {told}"):
        graph.write(whole, None, Path(".tmp"), {}, side=32, out=Path("a.pt2"))
    assert not list(Path().iterdir())


class Measured(torch.nn.Module):
    """Its graph says of which type what it computes is."""

    stride = 8

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 2, 8, stride=8)

    def forward(self, image):
        class_map = self.layer(image)
        return Outputs(class_map.mean((2, 3)), class_map, class_map)


def test_a_graph_of_a_run_in_half_precision_runs_in_the_types_it_was_written_with(in_tmp):
    method = build("classify", classes=2)
    method.student = Measured()
    whole, image = graph.Graph(method, ["class_map"]), torch.rand(1, 3, 16, 24)
    graph.save_torch(graph.capture(whole, "a"), Path("a.pt2"), {})
    _, run = graph.open_torch(Path("a.pt2"))
    with torch.autocast("cpu", torch.bfloat16):
        found = run(image)
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(found, whole(image), strict=True))


def test_a_network_of_padded_windows_is_told_at_once():
    method = Classify(tiny_swin())
    with pytest.raises(
        RunError, match="runs/a: .* windows of a SwinTransformer are padded .*; take --format safetensor"
    ):
        graph.capture(graph.Graph(method, ["class_map"]), "runs/a")
