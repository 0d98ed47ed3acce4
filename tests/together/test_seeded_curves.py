"""Twenty steps of students of the demo, smoke_mini and voc_mini at toy size: the losses are those that were recorded.

A change that should not alter results leaves them equal bit for bit; one that should records them anew and says why:

    PYTHONPATH=.:tests python -m tests.together.test_seeded_curves
"""

import json
import os
import tempfile
from pathlib import Path

import pytest
import torch
from support.places import ROOT
from support.squares import Squares
from support.toys import TOY

from launcher.config.file import load_config
from launcher.tracking.tracker import read_metrics
from launcher.training.run import train
from shards.sources.synthetic import Synthetic
from shards.write import write_split

RECORDED = ROOT / "tests/golden/curves.json"
SHORT = ["train.steps=20", "train.log_every=1", "train.save_every=20", "train.eval_every=1000", "train.warmup_steps=5"]
SHORT += ["data.workers=0", "launch.processes=1", "tracking.experiment=curves"]
SMOKE = ["data.train=scenes/train", "data.val=scenes/val", "data.tune=null", "data.image_size=64"]
SMOKE += ["data.global_batch_size=8", "model.weights=null"]
CNN = [
    "model.name=cnn",
    "model.timm_name=resnet10t",
    "model.output_stride=8",
    "model.timm_options={channels: [8, 8, 16, 16]}",
]
VIT_SIZE = "model.timm_options={img_size: 64, patch_size: 8, embed_dim: 32, depth: 3, num_heads: 2}"
PHASES = ["method.contrast_from=4", "method.seg_from=8", "method.msee_from=12"]
RUNS = {  # run: its config and what makes it small; a teacher comes before its student
    "demo/teacher": ("demo/teacher", [*SMOKE, *CNN]),
    "demo/student": ("demo/student", [*SMOKE, VIT_SIZE]),
    "smoke_mini/teacher": ("smoke_mini/teacher", [*SMOKE, *CNN]),
    "smoke_mini/student": ("smoke_mini/student", [*SMOKE, VIT_SIZE, "teacher=runs/smoke_mini/teacher"]),
    "voc_mini/msee": ("voc_mini/msee", [*TOY, *PHASES, "data.val=pets/val"]),
}


def machine() -> dict[str, str]:
    """Of which the order of float32 sums is a function."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {"torch": torch.__version__, "cpu": model, "capability": torch.backends.cpu.get_cpu_capability()}


def write_data() -> None:
    """The scenes and squares that all runs train on, in the working folder."""
    for split, images, masks in (("train", 64, False), ("val", 8, True)):
        supervision = "pixel" if masks else "label"
        scenes = Synthetic(split=split, num_images=images, size=64, cooccurrence=0.8, with_masks=masks)
        write_split(scenes, Path("scenes"), split, supervision, num_shards=4)
        write_split(Squares(split, images, masks), Path("pets"), split, supervision, num_shards=4)


def curve(name: str) -> list[dict[str, float]]:
    """The losses of each step of a run."""
    config, small = RUNS[name]
    train(load_config(ROOT / f"configs/{config}.yaml", [f"name={name}", *small, *SHORT]))
    steps = [
        {key: value for key, value in line.items() if key.endswith("loss")}
        for line in read_metrics(Path("runs") / name)
    ]
    return [losses for losses in steps if losses]


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory, mlflow_store: str) -> dict[str, list[dict[str, float]]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("curves"))
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_store)
        write_data()
        return {name: curve(name) for name in RUNS}


@pytest.mark.parametrize("name", RUNS)
def test_a_seeded_run_has_the_recorded_losses(name, curves):
    recorded = json.loads(RECORDED.read_text())
    wanted = recorded["curves"][name]
    assert len(wanted) == 20 and len(curves[name]) == 20
    if torch.__version__ != recorded["machine"]["torch"]:
        pytest.skip(f"recorded with torch {recorded['machine']['torch']}; another one draws and sums otherwise")
    if machine() == recorded["machine"]:
        assert curves[name] == wanted
    else:  # other kernels sum in another order, and twenty steps carry it on
        for here, there in zip(curves[name], wanted, strict=True):
            assert here == pytest.approx(there, rel=0.02, abs=1e-3)


def record() -> None:
    torch.set_num_threads(1)
    os.environ["MLFLOW_TRACKING_URI"] = "sqlite:///mlflow.db"
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_data()
        found = {name: curve(name) for name in RUNS}
    RECORDED.write_text(json.dumps({"machine": machine(), "curves": found}, indent=1) + "\n")


if __name__ == "__main__":
    record()
