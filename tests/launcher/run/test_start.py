"""A network that begins with another one of ours: a run, its checkpoint, its weights file, an exported student."""

import re
import shutil

import pytest
import torch
from support.tiny import VIT

from launcher.config.file import load_config
from launcher.config.options import Named
from launcher.errors import ConfigError, RunError
from launcher.files import RUNS
from launcher.predict.export import export
from launcher.run.build import build_method, build_network, drop_weights, load_trained
from launcher.run.folder import Run
from launcher.run.start import find_further_weights
from launcher.training.run import train
from shards.schema import SMOKE, ClassSet
from wsss.models import MODELS
from wsss.models.base import Network
from wsss.models.frozen import FrozenNet

PETS = ClassSet(name="pets", classes=("cat", "dog"))


def named(run, weights, **changes):
    """The network of a run, which begins with these weights."""
    model = Run(run).config.model
    options = {name: value for name, value in model.options.items() if value is not None}
    return Named(**{"name": model.name, **options, "weights": str(weights), **changes})


def equal(one, other, part):
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items() if name.startswith(part))


@pytest.fixture
def trained(run):
    """(a run's folder, its trained student)."""
    return run, load_trained(Run(run)).method.student


@pytest.mark.parametrize("form", ["run", "checkpoint", "file", "export"])
def test_all_of_a_network_is_taken_where_the_classes_are_the_same(trained, form, tmp_path):
    run, student = trained
    checkpoint = Run(run).checkpoint()
    places = {"run": run, "checkpoint": checkpoint, "file": checkpoint / "model.safetensors"}
    place = places.get(form) or export(run, tmp_path / "student.safetensors").path
    network = build_network(named(run, place), SMOKE)
    assert equal(network, student, "backbone") and equal(network, student, "head")
    assert network.origin.startswith("begins with ") and network.origin.endswith(": head, backbone")


def test_the_backbone_alone_is_taken_where_the_classes_are_others(trained, tmp_path):
    run, student = trained
    for place in (run, export(run, tmp_path / "student.safetensors").path):
        network = build_network(named(run, place), PETS)
        assert equal(network, student, "backbone") and network.head.weight.shape[0] == 2
        assert network.origin.endswith(": backbone; new: head (its classes are smoke)")
    renamed = build_network(named(run, run), ClassSet(name="fire", classes=("fire",)))  # as many, but others
    assert not equal(renamed, student, "head")


def test_another_model_on_the_same_backbone_takes_what_fits(trained):
    run, student = trained
    network = build_network(named(run, run, name="toco", decoder_dim=8, dilation=1, aux_block=0), SMOKE)
    assert equal(network, student, "backbone")
    assert network.origin.endswith(": backbone; new: head, aux_head, decoder")  # its head has no bias


def test_another_backbone_is_refused_by_name(trained):
    run, _ = trained
    with pytest.raises(ConfigError, match="another network than CNN: .* names of the backbone are missing"):
        build_network(named(RUNS / "teacher", run), SMOKE)


def test_a_folder_that_is_no_run_and_a_damaged_checkpoint_are_refused(trained, tmp_path):
    run, _ = trained
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty is a folder, but neither a run with a checkpoint nor a complete"):
        build_network(named(run, tmp_path / "empty"), SMOKE)
    shutil.copytree(run, tmp_path / "damaged")
    file = Run(tmp_path / "damaged").checkpoint() / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(RunError, match=r"model\.safetensors"):
        build_network(named(run, tmp_path / "damaged"), SMOKE)


def test_a_run_that_began_with_another_says_so_and_knows_it_by_content(trained, tiny_yaml, capsys):
    own = ["model.weights=runs/teacher", "data.val=null", "data.tune=null", "train.steps=1", "name=second"]
    train(load_config(tiny_yaml("classify"), own))
    assert "student begins with runs/teacher" in capsys.readouterr().out
    assert Run(RUNS / "second").about["learns_from"]["model.weights"].startswith("sha256 ")
    checkpoint = Run(RUNS / "teacher").checkpoint()
    train(load_config(tiny_yaml("classify"), [*own, f"model.weights={checkpoint}/model.safetensors"]))  # the same bytes
    assert "begins with" not in capsys.readouterr().out  # it goes on


def test_every_place_of_initial_weights_is_left_out_where_a_checkpoint_has_them():
    named = Named(name="frozen", weights="a", second_weights="b", text_weights="c", second="vit", class_weights=[1, 2])
    assert drop_weights(named).options == {
        "weights": None, "second_weights": None, "text_weights": None, "second": "vit", "class_weights": [1, 2],
    }  # fmt: skip


def test_files_at_further_places_are_found_for_a_run_to_know_them_by_content(tmp_path):
    (tmp_path / "clip").mkdir()
    for name in ("vit.pth", "clip/model.safetensors"):
        (tmp_path / name).write_bytes(b"")
    vit = str(tmp_path / "vit.pth")
    places = {"weights": vit, "second_weights": "timm", "third_weights": vit}
    found = find_further_weights(Named(name="frozen", text_weights=str(tmp_path / "clip"), **places))
    assert found == {"third_weights": tmp_path / "vit.pth", "text_weights": tmp_path / "clip/model.safetensors"}


def test_what_is_wrong_with_a_partner_is_not_said_of_the_model(tiny_config, tmp_path):
    partners = {
        "partner.timm_name: timm has no 'resnet9'; near": {"timm_name": "resnet9"},
        f"partner.weights: {tmp_path} is a folder, but neither": {"timm_name": "resnet10t", "weights": str(tmp_path)},
    }
    for said, partner in partners.items():
        both = [f"model={VIT}", f"partner={ {'name': 'cnn', **partner} }"]
        with pytest.raises(ConfigError, match=f"^{said}"):
            build_method(tiny_config("cotrain", *both), SMOKE)


SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}


@pytest.fixture
def frozen(tiny_config):
    """texts -> the folder of a run of method frozen; () = it learnt its classifier."""

    def trained_with(*texts):
        model = {"name": "frozen", "timm_name": "vit_tiny_patch16_224", "timm_options": SIZE, "texts": list(texts)}
        model |= {"decoder_dim": 8, "decoder_blocks": 1, "decoder_heads": 2}
        method = {"name": "frozen", "seg_from": 0, "attended": 2, "par_iterations": 1}
        own = ["data.val=null", "data.tune=null", "train.steps=0", f"name=of{len(texts)}"]
        train(tiny_config("classify", *own, f"model={model}", f"method={method}"))
        return RUNS / f"of{len(texts)}"

    return trained_with


def test_frozen_encoders_are_a_backbone_and_texts_are_those_that_were_asked_for(in_tmp, frozen, monkeypatch):
    run = frozen()
    network = build_network(named(run, run), PETS)
    student = load_trained(Run(run)).method.student
    assert equal(network, student, "encoders") and network.origin.startswith(f"begins with {run}")
    with pytest.raises(ConfigError, match="model.texts: no CLIP has encoded them"):
        frozen("smoke")
    monkeypatch.setattr(FrozenNet, "check_begun", lambda _: None)
    run = frozen("smoke")
    build_network(named(run, run), SMOKE)
    for changed, said in (("texts", "'plume'"), ("other_texts", "'sky'")):
        with pytest.raises(
            ConfigError, match=rf"model.{changed} is \[{said}\], but {run}/step_.* was trained with \['"
        ):
            build_network(named(run, run, **{changed: [said.strip("'")]}), SMOKE)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({"name": "setr", "patch_size": 0}, "model.patch_size is 0; wanted 1 or more"),
        ({"name": "setr", "layers": -1}, "model.layers is -1; wanted 1 or more"),
        ({"name": "setr", "spread": -1}, "model.spread is -1; wanted 1 or more"),
        (
            {"name": "sam_decoder", "encoder": {"embed_dim": 32, "depth": -1, "num_heads": 2}},
            "model.encoder.depth is -1; wanted 1 or more",
        ),
        (
            {"name": "sam_decoder", "encoder": {"embed_dim": 33, "depth": 1, "num_heads": 2}},
            "model.encoder.embed_dim is 33; wanted a multiple of its num_heads",
        ),
        ({"name": "sam_decoder", "encoder": {"depth": 1}}, "model.encoder has depth; wanted depth, embed_dim"),
        ({"name": "conformer", "num_heads": -1}, "model.num_heads is -1; wanted 1 or more"),
        ({"name": "setr", "widths": []}, "model: 'setr' cannot be built with widths=[] (IndexError: tuple index out"),
        (
            {"name": "pcm", "timm_name": "resnet10t", "affinity_dim": -1},
            "model: 'pcm' cannot be built with timm_name=resnet10t, affinity_dim=-1 (RuntimeError: Trying to create",
        ),
    ],
)
def test_numbers_that_no_layer_can_have_are_told_with_their_options(model, told):
    with pytest.raises(ConfigError, match=re.escape(told)):
        build_network(Named(**model), SMOKE)


@pytest.mark.parametrize("fault", [KeyError("widths"), TypeError("no number"), RuntimeError("shapes differ")])
def test_a_fault_in_the_code_of_another_package_keeps_its_traceback(monkeypatch, fault):
    def of_others(num_classes: int, *, width: int = 4) -> Network:
        if width < 1:
            raise ValueError(f"model.width is {width}; wanted 1 or more")
        raise fault

    monkeypatch.setitem(MODELS, "of_others", of_others)
    for named in (Named(name="of_others"), Named(name="of_others", width=8)):
        with pytest.raises(type(fault)) as caught:
            build_network(named, SMOKE)
        assert caught.value is fault
    with pytest.raises(ConfigError, match="model.width is -1; wanted 1 or more"):
        build_network(Named(name="of_others", width=-1), SMOKE)


def test_a_fault_of_ours_is_no_option_s_where_none_was_given(monkeypatch):
    def broken(num_classes: int, *, width: int = 4) -> Network:
        raise IndexError("tuple index out of range")

    broken.__module__ = "wsss.models.broken"
    monkeypatch.setitem(MODELS, "broken", broken)
    with pytest.raises(IndexError):
        build_network(Named(name="broken"), SMOKE)
    with pytest.raises(ConfigError, match="'broken' cannot be built with width=8 "):
        build_network(Named(name="broken", width=8), SMOKE)
