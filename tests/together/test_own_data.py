"""The ways of docs/own_classes.md and docs/own_frames.md at toy size: their commands, on their folders, with the
networks made small."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.command import wsss
from support.places import ROOT
from support.toys import TOY
from support.videos import write_mp4

from launcher.config.file import load_config
from launcher.tracking.tracker import read_metrics
from launcher.training.run import train
from shards.folder import ShardFolder

CLASSES = ("cat", "dog", "person", "car")
COLOURS = {"cat": (220, 30, 30), "dog": (30, 30, 220), "person": (30, 200, 30), "car": (230, 220, 30)}
NETWORK = ["model.weights=null", "data.image_size=32", "data.workers=0"]
CNN = [
    *NETWORK,
    "model.timm_name=resnet10t",
    "model.timm_options={channels: [8, 8, 16, 16], layers: [1, 1, 1, 1]}",
    "model.output_stride=8",
]
VIT = [
    *NETWORK,
    "model.timm_name=vit_tiny_patch16_224",
    "model.timm_options={img_size: 32, patch_size: 8, embed_dim: 16, depth: 2, num_heads: 2}",
]
SHORT = ["data.global_batch_size=4", "train.steps=2", "train.eval_every=2", "train.save_every=2", "refine.workers=1"]
SHORT += ["segment.workers=0"]
SMALL = {
    "classify": [
        *CNN,
        "train.steps=40",
        "train.lr=1e-2",
        "train.log_every=20",
        "train.eval_every=20",
        "train.save_every=20",
        "refine.workers=1",
    ],
    "teacher": [*CNN, *SHORT],
    "student": [*VIT, *SHORT],
    "stage3_deeplab": [*CNN, *SHORT, "train.precision=ieee", "train.graph=false", "train.log_every=1"],
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


@pytest.fixture
def frames(in_tmp):
    """Frames of 12 scenes, half of them with a bright square; their tables and masks; new ones, a clip."""
    rng = np.random.default_rng(0)
    lines = {"train.csv": ["image,label,group"], "val.csv": ["image,label,group"]}
    for name in ("my_frames/frames", "my_frames/masks/frames", "new"):
        (in_tmp / name).mkdir(parents=True)
    for n in range(24):
        image, mask = rng.integers(90, 110, (48, 64, 3)).astype(np.uint8), np.zeros((48, 64), np.uint8)
        if smoke := n % 2:
            y, x = rng.integers(0, (30, 40))
            image[y : y + 16, x : x + 20], mask[y : y + 16, x : x + 20] = 230, 1
            Image.fromarray(mask).save(in_tmp / f"my_frames/masks/frames/{n:04d}.png")
        Image.fromarray(image).save(in_tmp / f"my_frames/frames/{n:04d}.jpg", quality=95)
        lines["val.csv" if n >= 16 else "train.csv"].append(f"frames/{n:04d}.jpg,{smoke},scene{n // 2}")
    for name, table in lines.items():
        (in_tmp / "my_frames" / name).write_text("\n".join(table) + "\n")
    Image.fromarray(image).save(in_tmp / "new/a.jpg")
    write_mp4(in_tmp / "clip.mp4", frames=2)
    (in_tmp / "configs").symlink_to(ROOT / "configs")
    return in_tmp


def commands(page):
    """The arguments of every `wsss` line of a page."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("wsss ")]


def run_line(words):
    """What a line prints; training runs in this process, at toy size."""
    if words[0] == "train":
        small = SMALL[Path(words[1]).stem]
        chosen = [one for one in small if one.split("=")[0] not in [other.split("=")[0] for other in words[2:]]]
        train(load_config(Path(words[1]), [*chosen, *words[2:]]))
        return ""
    words = ["cam.window_px=32" if word == "cam.window_px=224" else word for word in words]
    here = ["--workers", "1"] if words[:2] in (["shards", "smoke"], ["shards", "images"]) else []
    return wsss(*words, *here)


def test_the_page_goes_from_labels_to_a_report_without_a_mask(pets, capsys):
    lines = commands("docs/own_classes.md")
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


def test_the_page_goes_from_frames_to_masks_of_new_ones_and_to_a_network_of_masks(frames):
    lines = [words for words in commands("docs/own_frames.md") if "--frame-column" not in words]  # of clips, not here
    assert [words[0] for words in lines].count("train") == 3 and len(lines) == 17
    said = [run_line(words) for words in lines]
    assert not any("Traceback" in one for one in said)
    sources = json.loads(Path("runs/mine/student/evaluation.json").read_text())["sources"]
    assert {"grad", "grad+crf", "project+crf"} <= set(sources) and sources["grad"]["tuned"]["threshold"] is not None
    assert Path("runs/mine/report.html").is_file() and Path("runs/mine/student/cams@whole/val/shards.json").is_file()
    assert {path.name for path in Path("seen").iterdir()} >= {"masks", "overlays", "clips", "frames.csv"}
    assert read_metrics(Path("runs/mine/stage3"))[-1]["step"] == 2
