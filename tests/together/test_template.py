"""The package below docs/ that others begin with: importable, tested by its own tests, and trained."""

import json
import runpy

from safetensors.torch import load_file
from support.packages import TEMPLATE, install_template

from launcher.config.file import load_config
from launcher.tracking.tracker import read_metrics
from launcher.training.run import train

SMALL = "train={steps: 2, lr: 1e-3, log_every: 1, save_every: 2, eval_every: 2}"
VIT = "model.timm_options={img_size: 32, patch_size: 8, embed_dim: 16, depth: 2, num_heads: 2}"


def test_the_template_passes_its_own_tests_and_trains(in_tmp, scenes, monkeypatch):
    install_template(monkeypatch, in_tmp / "site")
    own = [runpy.run_path(str(TEMPLATE / f"tests/test_{part}.py")) for part in ("method", "metric")]
    tests = [function for file in own for name, function in file.items() if name.startswith("test_")]
    assert len(tests) == 5
    for test in tests:
        test()

    places = [f"data.{split}={scenes}/{split}" for split in ("train", "val", "tune")]
    small = ["data.image_size=32", "data.global_batch_size=8", "data.workers=0", "cam.batch_size=8", "tracking.to=[]"]
    train(load_config(TEMPLATE / "prototypes.yaml", [*places, *small, SMALL, VIT]))
    run = in_tmp / "runs/prototypes"
    assert 0 <= read_metrics(run)[-1]["val/prototype/hit_rate"] <= 1
    assert load_file(run / "step_0000002/model.safetensors")["prototype_KD"].any()
    assert json.loads((run / "run.json").read_text())["packages"]["wsss-prototypes"] == "0.1"
