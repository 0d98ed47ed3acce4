"""Method `frozen` as a run: what it learns from and changes, and its maps and masks through all that reads a run."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from support.places import ROOT
from support.squares import Squares
from support.together import together, trained

import wsss
from launcher.config.file import load_config
from launcher.evaluation.evaluate import evaluate
from launcher.jobs.infer import infer
from launcher.jobs.segment import segment
from launcher.predict.export import export
from launcher.run.folder import run_folder
from launcher.training.inputs import Inputs
from launcher.training.run import train
from shards.write import write_split

CONFIG = ROOT / "configs/voc_mini/frozen.yaml"
SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}


@pytest.fixture
def toy(in_tmp):
    """Overrides that make the shipped config small, on a file of weights and on images without masks."""
    for split, images, masks in (("train", 16, False), ("val", 8, True)):
        write_split(Squares(split, images, masks), in_tmp / "pets", split, "pixel" if masks else "label", num_shards=2)
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, **SIZE)
    torch.save(vit.state_dict(), "vit.pth")
    return [
        "data.train=pets/train", "data.val=pets/val", "data.image_size=32", "data.workers=0",
        "model.timm_name=vit_tiny_patch16_224", "model.weights=vit.pth", f"model.timm_options={SIZE}",
        "model.decoder_dim=8", "model.decoder_blocks=1", "model.decoder_heads=2", "method.attended=2",
        "method.par_iterations=1", "method.seg_from=1", "method.agree_from=2", "train.power=0", "train.warmup_steps=0",
        "train.save_every=2", "train.log_every=1", "train.eval_every=null", "segment.workers=0", "evaluate.gallery=2",
        "tracking.to=[]",
    ]  # fmt: skip


def test_a_run_learns_from_image_labels_alone_goes_on_bit_for_bit_and_is_read_like_any_other(toy):
    config = load_config(CONFIG, [*toy, "name=whole", "train.steps=4"])
    assert "mask" not in next(iter(Inputs(config).batches_from(0, rank=0, ranks=1)))
    train(config)
    run = run_folder(config)
    states = [load_file(run / "step_0000004/model.safetensors")]
    shutil.rmtree(run / "step_0000004")
    train(config)  # from step 2
    states.append(load_file(run / "step_0000004/model.safetensors"))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    frozen = {name.split("backbone.")[1]: t for name, t in states[0].items() if ".encoders.0." in name}
    began = torch.load("vit.pth", weights_only=True)
    assert set(frozen) == set(began) and all(torch.equal(frozen[name], began[name]) for name in began)
    optimizer = torch.load(run / "step_0000004/optimizer.pt", weights_only=True)
    assert len(optimizer["state"]) == sum(".encoders." not in name for name in states[0])

    Path("vit.pth").unlink()  # a checkpoint has all
    infer(run, "val", Path("pets/val"))
    segment(run, "val", Path("pets/val"), [], None, cams=True)
    figures = evaluate(run)["sources"]
    for source in ("class_map", "segments", "segments.cam"):
        assert 0 <= figures[source]["fixed"]["miou"] <= 1
    export(run, Path("student.safetensors"))
    image = np.random.default_rng(0).integers(0, 256, (40, 48, 3)).astype(np.uint8)
    for kind in ("seg", "class_map", "grad", "attention"):
        of_run, of_file = (wsss.load(place, kind=kind).predict(image) for place in (run, "student.safetensors"))
        np.testing.assert_allclose(of_run.scores, of_file.scores, atol=1e-5)


@pytest.mark.slow
def test_two_processes_train_as_one_does(toy):
    few = [*toy, "train.steps=4", "data.val=null"]
    seen = {n: together(n, trained, CONFIG, [[*few, f"launch.processes={n}", f"name=of{n}"]]) for n in (1, 2)}
    (((one,),), two) = seen[1], [facts for (facts,) in seen[2]]
    assert len(set(one["losses"])) == 4 and two[0]["sum"] == two[1]["sum"]
    assert two[0]["losses"][:2] == pytest.approx(one["losses"][:2], rel=1e-4)
    assert two[0]["losses"] == pytest.approx(one["losses"], rel=2e-3)  # a pixel of a pseudo label may round over
    assert two[0]["sum"] == pytest.approx(one["sum"], rel=1e-3)
