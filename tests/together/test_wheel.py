"""The wheel is the product: what lies in it, and what it does in an environment that holds nothing else."""

import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from support.places import ROOT

import wsss

TREE = (
    "launcher",
    "shards",
    "wsss",
    "configs",
    "setup.cfg",
    "setup.py",
    "pyproject.toml",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
)
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built of a copy, since building leaves folders in the tree."""
    pytest.importorskip("setuptools", minversion="70.1")
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in TREE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(ROOT / name, tree)
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", BUILD, str(out)], cwd=tree, env=clean, check=True, capture_output=True)
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_holds_the_packages_with_their_types_the_configs_and_the_templates(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {
        str(path.relative_to(ROOT))
        for package in ("launcher", "shards", "wsss")
        for path in (ROOT / package).rglob("*")
        if path.suffix in (".py", ".typed", ".yaml", ".html")
    }
    wanted |= {f"launcher/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*") if path.is_file()}
    assert {f"{package}/py.typed" for package in ("launcher", "shards", "wsss")} <= wanted
    assert held == wanted


def test_its_metadata_say_what_it_is(wheel):
    archive = zipfile.ZipFile(wheel)
    (place,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
    about = Parser().parsestr(archive.read(place).decode())
    assert (about["Name"], about["Version"]) == ("wsss", wsss.__version__)
    pythons = {line.rsplit(" ", 1)[1] for line in about.get_all("Classifier") if "Python :: 3." in line}
    assert about["Requires-Python"] == ">=3.10" and {"3.10", f"{sys.version_info[0]}.{sys.version_info[1]}"} <= pythons
    plain = [line for line in about.get_all("Requires-Dist") if "extra ==" not in line]
    assert not [line for line in plain if line.startswith(("pydensecrf", "deepspeed", "mlflow", "av", "transformers"))]
    assert {"all", "clip", "crf", "mlflow", "s3", "sam", "tensorboard", "video", "zero"} <= {
        *about.get_all("Provides-Extra")
    }


def run(*command, cwd, **extra):
    clean = {n: v for n, v in os.environ.items() if n != "PYTHONPATH" and not n.startswith(("MLFLOW", "ACCELERATE"))}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env={**clean, **extra}, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_an_empty_environment_with_the_wheel_alone_does_the_work(wheel, tmp_path):
    """WSSS_PYTHON names another Python than the tests' own. Packages come from where pip finds them."""
    environment, work = tmp_path / "environment", tmp_path / "work"
    run(os.environ.get("WSSS_PYTHON", sys.executable), "-m", "venv", environment, cwd=tmp_path)
    run(environment / "bin/python", "-m", "pip", "install", "--quiet", wheel, cwd=tmp_path)
    command = environment / "bin/wsss"
    work.mkdir()
    assert run(command, "--version", cwd=work) == f"wsss {wsss.__version__}\n"
    assert "smoke_table_4_10 " in run(command, "study", "list", cwd=work)
    run(command, "init", work, cwd=tmp_path)
    for split, images in (("train", 64), ("tune", 16), ("val", 16)):
        size = ("--images", images, "--size", 32, "--shards", 4)
        masks = [] if split == "train" else ["--masks"]
        run(command, "shards", "synthetic", "--out", "data", "--split", split, *size, *masks, cwd=work)
    small = ["train.steps=4", "train.warmup_steps=1", "data.image_size=32", "data.workers=0", "launch.processes=1"]
    data = [f"data.{split}=data/{split}" for split in ("train", "tune", "val")]
    assert "-m launcher.train demo/teacher" in run(command, "train", "demo/teacher", *data, "--dry-run", cwd=work)
    said = run(command, "train", "teacher.yaml", *small, cwd=work, WSSS_RUNS=str(tmp_path / "scratch"))
    assert "for MLflow: pip install 'wsss[mlflow]'" in said
    for step in ("infer", "refine", "evaluate"):
        run(command, step, "runs/teacher", cwd=work, WSSS_RUNS=str(tmp_path / "scratch"))
    assert list(Path(tmp_path / "scratch/teacher/masks").rglob("*.tar")) and not (work / "runs").exists()
