import inspect
import re
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import get_args

import pytest
from PIL import Image
from support.command import wsss_ends
from support.places import ROOT
from support.store import Store
from typer.testing import CliRunner

from launcher.__main__ import ORDER, app
from shards.schema import DataError
from wsss import __version__


def wsss(*arguments, cwd, code=0):
    """Run the command as a user does; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "launcher", *map(str, arguments)],
        cwd=cwd,
        env={**clean_environment(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def clean_environment():
    import os

    return {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "ACCELERATE"))}


def test_help_needs_no_heavy_import():
    code = (
        "import sys\nfrom launcher.__main__ import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'timm', 'mlflow', 'accelerate', 'deepspeed', 'webdataset', 'segment_anything'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)


COMMANDS = ["shards synthetic", "shards smoke", "shards verify", "shards info"]
COMMANDS += [f"shards {name}" for name in ("ijmond", "ijmond-frames", "rise", "smoke5k", "video-urls", "join")]
COMMANDS += [
    "init",
    "train",
    "infer",
    "cues sam",
    "cues clip",
    "cues concept",
    "cues walk",
    "refine",
    "evaluate",
    "report",
]
COMMANDS += ["shards voc12", "shards coco14", "segment", "pack-voc", "trajectory", "export", "status", "predict"]
COMMANDS += ["study list", "study run", "study report", "bench lr-range", "bench msee-step", "bench crf"]


def test_help_lists_all_commands_in_the_order_of_work():
    shown = CliRunner().invoke(app, ["--help"], terminal_width=200).output
    listed = [line.split()[1] for line in shown.splitlines() if re.match(r"│ [a-z]", line)]
    assert listed == ORDER


def functions_of(group):
    yield from (command.callback for command in group.registered_commands)
    for inner in group.registered_groups:
        yield from functions_of(inner.typer_instance)


def test_each_path_of_each_command_refuses_a_url_of_which_nothing_would_be_found():
    lax, looked_at = [], 0
    for function in functions_of(app):
        for name, hint in inspect.get_annotations(function, eval_str=True).items():
            kind, *about = get_args(hint) or (hint,)
            if "pathlib" not in str(kind):
                continue
            looked_at += 1
            url = Path("s3://b/x")
            try:
                about[0].callback([url] if "list" in str(kind) else url)
            except DataError as error:
                assert str(error).startswith("s3://b/x: must be a local path")
            except TypeError:  # there is no callback
                lax.append(f"{function.__name__} {name}")
    assert lax == [] and looked_at > 40


def test_shards_at_a_url_are_joined_with_others(scenes, in_tmp, monkeypatch):
    monkeypatch.setenv("WSSS_CACHE", str(in_tmp / "cache"))
    store = Store(scenes)
    try:
        line = ["shards", "join", f"{store.url}/tune", str(scenes / "val"), "--out", "d", "--split", "x"]
        found = CliRunner().invoke(app, [*line, "--workers", "1"])
    finally:
        store.stop()
    assert "split 'x', supervision 'pixel', 40 images" in found.output, found.exception


def test_a_folder_of_runs_that_is_a_url_is_refused_by_each_command(monkeypatch):
    monkeypatch.setattr("launcher.__main__.RUNS", Path("s3://b/runs"))
    for line in (["study", "list"], ["study", "report", "demo_clips"]):
        error = CliRunner().invoke(app, line).exception
        assert isinstance(error, DataError) and str(error).startswith("s3://b/runs: must be a local path"), error


def test_the_version_is_said():
    assert CliRunner().invoke(app, ["--version"]).output == f"wsss {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_ends_with_an_example_of_it(command):
    shown = CliRunner().invoke(app, [*command.split(), "--help"], terminal_width=200)
    assert shown.exit_code == 0
    assert f"Example:  wsss {command}" in shown.output


@pytest.fixture
def wsss_here(in_tmp, monkeypatch, capsys):
    """The command in this process, which spares the imports; gives what it printed and its exit code."""
    return partial(wsss_ends, monkeypatch=monkeypatch, capsys=capsys)


def test_shards_are_written_verified_and_described(in_tmp, wsss_here):
    command = ("shards", "synthetic", "--out", "d", "--split", "train", "--images", 12, "--size", 32)
    said = wsss(*command, cwd=in_tmp)
    assert "split 'train', supervision 'label', 12 images" in said
    said, code = wsss_here(*command)
    assert "d/train: already exists, made of the same files with the same options\nd/train: split 'train'" in said
    assert code == 0
    said, code = wsss_here("shards", "verify", "d/train")
    assert "12 shards, 12 samples, every byte as written" in said and code == 0
    path = in_tmp / "d/train/train-00004.tar"
    path.write_bytes(path.read_bytes()[:-1])
    said, code = wsss_here("shards", "verify", "d/train")
    assert "train-00004.tar" in said and "Traceback" not in said and code == 2
    said, code = wsss_here("shards", "synthetic", "--out", "d", "--split", "train")
    assert "exists already, made of something else (samples: 12, now 256; " in said and code == 2


def test_own_frames_become_train_and_tune(in_tmp, wsss_here):
    rows = ["image,label,group"]
    for n in range(12):
        Image.new("RGB", (8, 8), (20 * n, 0, 0)).save(in_tmp / f"{n}.jpg")
        rows.append(f"{n}.jpg,{n % 2},video{n // 3}")
    (in_tmp / "labels.csv").write_text("\n".join(rows))
    for n in range(1, 12, 2):
        Image.new("L", (8, 8), 1).save(in_tmp / f"{n}.png")
    said, code = wsss_here(
        *("shards", "smoke", "--root", ".", "--labels", "labels.csv", "--out", "d", "--split", "train"),
        *("--hold-out", 0.3, "--mask-folder", ".", "--masks", "--workers", 1),
    )
    assert "split 'tune', supervision 'pixel', 3 images" in said and code == 0
    assert "split 'train', supervision 'label', 9 images" in said


@pytest.mark.parametrize(("command", "column"), [("smoke", "label"), ("images", "labels")])
def test_no_mask_is_read_without_masks_and_none_of_what_is_kept(in_tmp, wsss_here, command, column):
    (in_tmp / "frames/masks").mkdir(parents=True)
    names = ("1", "0") if command == "smoke" else ("cat", "background")
    rows = [f"image,{column},group", *(f"{n}.jpg,{names[n % 2]},video{n // 3}" for n in range(12))]
    (in_tmp / "frames/labels.csv").write_text("\n".join(rows))
    for n in range(12):
        Image.new("RGB", (8, 8), (20 * n, 0, 0)).save(in_tmp / f"frames/{n}.jpg")
        Image.new("L", (8, 8), (n + 1) % 2).save(in_tmp / f"frames/masks/{n}.png")
    wanted = ("shards", command, "--root", "frames", "--labels", "labels.csv", "--split", "train", "--workers", 1)
    wanted += ("--image-folder", "", "--hold-out", "tune=0.3")
    said, code = wsss_here(*wanted, "--out", "without")
    assert code == 0 and "12 images have a mask; pass --masks" in said and "'pixel'" not in said
    assert "'tune' has no masks: it can choose the gate, but no threshold" in said
    said, code = wsss_here(*wanted, "--out", "with", "--masks")
    assert code == 0 and "split 'tune', supervision 'pixel', 3 images" in said
    assert "split 'train', supervision 'label', 9 images" in said


@pytest.mark.parametrize(("command", "column"), [("smoke", "label"), ("images", "labels")])
def test_frames_without_a_mask_are_left_out_where_that_is_asked_for_and_counted(in_tmp, wsss_here, command, column):
    (in_tmp / "frames/masks").mkdir(parents=True)
    names = ("1", "0") if command == "smoke" else ("cat", "background")
    rows = [f"image,{column},group", *(f"{n}.jpg,{names[n % 2]},video{n // 4}" for n in range(16))]
    (in_tmp / "frames/labels.csv").write_text("\n".join(rows))
    for n in range(16):
        Image.new("RGB", (8, 8), (15 * n, 0, 0)).save(in_tmp / f"frames/{n}.jpg")
    for n in range(0, 16, 4):  # of each video the first of two frames with a class, and none of two without
        Image.new("L", (8, 8), 1).save(in_tmp / f"frames/masks/{n}.png")
    wanted = ("shards", command, "--root", "frames", "--labels", "labels.csv", "--workers", 1, "--image-folder", "")
    said, code = wsss_here(*wanted, "--out", "d", "--split", "train", "--hold-out", "val=0.25", "--masks")
    assert code == 2 and "--skip-unmasked" in said
    wanted += ("--masks", "--skip-unmasked")
    said, code = wsss_here(*wanted, "--out", "d", "--split", "train", "--hold-out", "val=0.25")
    assert code == 0 and "d/val: 1 of 4 images are labelled" in said and "they are left out of all splits" in said
    assert "split 'val', supervision 'pixel', 3 images" in said
    assert "split 'train', supervision 'label', 12 images" in said
    said, code = wsss_here(*wanted, "--out", "all", "--split", "val")
    assert code == 0 and "all/val: 4 of 16 images are labelled" in said
    assert "split 'val', supervision 'pixel', 12 images" in said


def test_own_frames_without_masks_become_a_label_only_tune(in_tmp, wsss_here):
    rows = ["image,label,group", *(f"{n}.jpg,{n % 2},video{n // 3}" for n in range(12))]
    (in_tmp / "frames").mkdir()
    for n in range(12):
        Image.new("RGB", (8, 8), (20 * n, 0, 0)).save(in_tmp / f"frames/{n}.jpg")
    (in_tmp / "labels.csv").write_text("\n".join(rows))
    wanted = ("shards", "smoke", "--root", "frames", "--labels", "labels.csv", "--out", "d", "--split", "train")
    said, code = wsss_here(*wanted, "--hold-out", 0.3, "--workers", 1)
    assert code == 0 and "it can choose the gate, but no threshold" in said
    assert "split 'tune', supervision 'label', 3 images" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("train", "CONFIG", "train.stepz=3"),
            "override 'train.stepz=3' of .*classify.yaml: train: unknown key 'stepz'; did",
        ),
        (("train", "gone.yaml"), "gone.yaml: config file is missing"),
        (("train", "CONFIG", "data.train=nowhere"), "nowhere: no shards here"),
        (("train", "CONFIG", "data.train=SCENES/val"), "supervision is 'pixel', wanted 'label'"),
        (("train", "CONFIG", "--resume"), "no complete checkpoint here"),
        (("train", "CONFIG", "model.weights=gone.pth"), "gone.pth: weights file is missing"),
        (("train", "CONFIG", "model.timm_name=resnet10"), "timm has no 'resnet10'; near: "),
        (("train", "CONFIG", "data.workers=13"), "12 shards in .* cannot feed 1 ranks x 13 workers = 13 readers"),
        (
            ("train", "CONFIG", "launch.processes=3"),
            "data.global_batch_size 8 does not divide into 3 processes x 1 micro-batches",
        ),
        (("infer", "runs/none"), "runs/none: no run here"),
        (("evaluate", "runs/none"), "runs/none: no run here"),
        (("report", "runs"), "no run with metrics"),
    ],
)
def test_mistakes_are_one_line_and_code_2_and_leave_nothing(in_tmp, wsss_here, tiny_yaml, scenes, arguments, message):
    config = str(tiny_yaml("classify"))
    arguments = [a.replace("CONFIG", config).replace("SCENES", str(scenes)) for a in arguments]
    said, code = wsss_here(*arguments)
    assert code == 2 and re.search(f"error: .*{message}", said, re.S)
    assert not (in_tmp / "runs").exists()


def test_a_run_that_is_called_by_its_name_alone_is_found_in_the_message(in_tmp, wsss_here):
    (in_tmp / "runs/mine/student").mkdir(parents=True)
    for name in ("config.yaml", "run.json"):
        (in_tmp / "runs/mine/student" / name).touch()
    said, code = wsss_here("evaluate", "mine/student")
    assert code == 2 and "mine/student: no run here" in said and "did you mean runs/mine/student?" in said


def test_a_dry_run_checks_and_prints_the_launch_command(in_tmp, wsss_here, tiny_yaml):
    options = ["train.seed=3", "method={name: classify, dark_weight: 0.0}"]
    said, code = wsss_here("train", tiny_yaml("classify"), *options, "--dry-run")
    assert code == 0 and said.startswith("env ") and "accelerate.commands.launch" in said
    assert shlex.split(said)[-2:] == options
    assert not (in_tmp / "runs").exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "images --root r --separator +",
            "--separator has no effect: there are no --labels, folders are the classes; l",
        ),
        ("images --root r --hold-out-seed 3", "--hold-out-seed has no effect: there is no --hold-out; leave it out"),
        ("images --root r --skip-unmasked", "--skip-unmasked has no effect: there are no --masks; leave it out"),
        ("images --root r --mask-values 0=a", "--mask-values has no effect: there are no --masks; leave it out"),
        ("images --root r --drop-others", "--drop-others has no effect: there are no --classes; leave it out"),
        ("smoke --root r --labels l --mask-values 0=a", "--mask-values has no effect: there are no --masks; leave it"),
        (
            "ijmond-frames --annotations a --images i --crops grid --negatives 1",
            "--negatives has no effect: --crops is",
        ),
        (
            "ijmond-frames --annotations a --images i --crops none --window 64 --stride 8",
            "--window, --stride have no effect: --crops is none; leave them out",
        ),
        ("coco14 --no-masks --paint order", "--paint has no effect: there are no masks; leave it out"),
        ("coco14 --annotations a --images i --year 2014", "--year has no effect: --annotations is one file; leave it"),
    ],
)
def test_an_option_of_shards_without_effect_is_refused(tmp_path, monkeypatch, capsys, line, said):
    end = wsss_ends(
        "shards", *line.split(), "--out", tmp_path / "out", "--split", "val", monkeypatch=monkeypatch, capsys=capsys
    )
    assert end[1] == 2 and f"error: {said}" in end[0] and not (tmp_path / "out").exists()
