"""The way of docs/own_classes.md at toy size: its commands, on its folder, with the networks made small."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.places import ROOT
from support.toys import TOY
from typer.testing import CliRunner

from launcher.__main__ import app
from launcher.config.file import load_config
from launcher.tracking.tracker import read_metrics
from launcher.training.run import train
from shards.folder import ShardFolder

CLASSES = ("cat", "dog", "person", "car")
COLOURS = {"cat": (220, 30, 30), "dog": (30, 30, 220), "person": (30, 200, 30), "car": (230, 220, 30)}
SMALL = {
    "classify": [
        "model.weights=null",
        "model.timm_name=resnet10t",
        "model.timm_options={channels: [8, 8, 16, 16], layers: [1, 1, 1, 1]}",
        "model.output_stride=8",
        "data.image_size=32",
        "data.workers=0",
        "train.steps=40",
        "train.lr=1e-2",
        "train.log_every=20",
        "train.eval_every=20",
        "train.save_every=20",
        "refine.workers=1",
    ],
    "msee": [*[one for one in TOY if not one.startswith("data.")], "data.image_size=32", "data.workers=0"],
}


@pytest.fixture
def pets(in_tmp):
    """48 photographs of coloured squares of four classes, of 12 groups, and their labels as the page shows them."""
    (in_tmp / "pets/photos").mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = ["image,labels,group"]
    for n in range(48):
        found = [name for number, name in enumerate(CLASSES) if (n + 3 * number) % 5 < 2 or n % 4 == number]
        image = rng.integers(90, 110, (32, 32, 3)).astype(np.uint8)
        for name in found:
            corner = divmod(CLASSES.index(name), 2)
            y, x = (int(16 * side + rng.integers(0, 6)) for side in corner)
            image[y : y + 9, x : x + 9] = COLOURS[name]
        Image.fromarray(image).save(in_tmp / f"pets/photos/{n:04d}.jpg", quality=95)
        lines.append(f"photos/{n:04d}.jpg,{';'.join(found) or 'background'},scene{n % 12}")
    (in_tmp / "pets/labels.csv").write_text("\n".join(lines) + "\n")
    (in_tmp / "configs").symlink_to(ROOT / "configs")
    return in_tmp


def commands():
    """The arguments of every `wsss` line of the page."""
    page = (ROOT / "docs/own_classes.md").read_text()
    blocks = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    return [shlex.split(line)[1:] for block in blocks for line in block.splitlines() if line.startswith("wsss ")]


def run_line(words):
    """What a line prints; training runs in this process, at toy size."""
    if words[0] == "train":
        small = SMALL[Path(words[1]).stem]
        chosen = [one for one in small if one.split("=")[0] not in [other.split("=")[0] for other in words[2:]]]
        train(load_config(Path(words[1]), [*chosen, *words[2:]]))
        return ""
    done = CliRunner().invoke(app, words)
    if done.exception is not None:
        raise done.exception
    return done.output


def test_the_page_goes_from_labels_to_a_report_without_a_mask(pets, capsys):
    lines = commands()
    assert [words[0] for words in lines].count("train") == 3 and len(lines) == 10
    said = {" ".join(words[:3]): run_line(words) for words in lines}
    train_shards, val = ShardFolder("data/own/train", "label"), ShardFolder("data/own/val", "label")
    assert train_shards.index.classes == CLASSES and train_shards.image_label_NK.any(axis=0).all()
    assert "images show none of the classes" in said["shards images --root"]
    report = json.loads(Path("runs/own/classify/evaluation.json").read_text())
    of_classes = report["labels"]["classes"]
    assert list(of_classes) == list(CLASSES)
    chance = val.image_label_NK.mean()
    assert report["classification"]["average_precision"] > chance + 0.15  # it tells coloured squares apart
    table = said["evaluate runs/own/classify"]
    assert all(re.search(rf"^ +{name} +[\d.]+ +[\d.–]+ +\d+$", table, re.MULTILINE) for name in CLASSES)
    page = Path("runs/own/classify/report.html").read_text()
    assert all(f"<td>{name}</td>" in page for name in CLASSES) and "data:image/jpeg" in page
    logged = {name for line in read_metrics(Path("runs/own/classify")) for name in line}
    assert {"val/average_precision", "val/class_f1", "val/calibration_error"} <= logged
    out = capsys.readouterr().out
    assert "student begins with runs/own/classify/step_0000040/model.safetensors: head, backbone\n" in out
    assert Path("classify.safetensors").is_file()
