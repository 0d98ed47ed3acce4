"""What the tests share: golden vectors, small synthetic shards, and the real data of WSSS_DATA where there is any."""

import os

# One thread per process: several of them share the cores, and the order of float32 sums stays the same.
os.environ["OMP_NUM_THREADS"] = "1"
# Kernels for GPUs are interpreted; where there is a GPU, unset, they are compiled.
if not os.path.exists("/dev/nvidiactl"):
    os.environ.setdefault("TRITON_INTERPRET", "1")

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support.tiny import write_tiny_yaml

from shards.sources.synthetic import Synthetic
from shards.write import write_split

GOLDEN = Path(__file__).parent / "golden"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: "together" not in item.path.parts)  # the long ones first: workers then end at one time
    if not os.environ.get("WSSS_DATA"):
        skip = pytest.mark.skip(reason="WSSS_DATA names no folder with the small real data and weights")
        for item in items:
            if "real_data" in item.keywords:
                item.add_marker(skip)


@pytest.fixture
def real_data() -> Path:
    return Path(os.environ["WSSS_DATA"])


@pytest.fixture
def golden():
    """name -> the arrays of tests/golden/NAME.npz (see its README for what they are)."""

    def read(name: str) -> dict[str, np.ndarray]:
        with np.load(GOLDEN / f"{name}.npz") as arrays:
            return {key: arrays[key] for key in arrays.files}

    return read


@pytest.fixture(scope="session")
def mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One MLflow store for all tests: creating its tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def in_tmp(tmp_path: Path, mlflow_store: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_store)
    return tmp_path


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the splits train (48 label-only images), val and tune (24 and 16 with masks), 32 px, 12 shards."""
    out = tmp_path_factory.mktemp("scenes")
    for split, images, masks in (("train", 48, False), ("val", 24, True), ("tune", 16, True)):
        source = Synthetic(split=split, num_images=images, size=32, cooccurrence=0.8, with_masks=masks)
        write_split(source, out, split, "pixel" if masks else "label", num_shards=12)
    return out


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def tiny_yaml(tmp_path: Path, scenes: Path):
    """method -> path of its tiny YAML."""
    return lambda method: write_tiny_yaml(tmp_path, scenes, method)


@pytest.fixture
def tiny_config(tiny_yaml):
    """(method, overrides) -> Config."""
    from launcher.config.file import load_config

    return lambda method, *overrides: load_config(tiny_yaml(method), overrides)


@pytest.fixture(scope="session")
def finished_runs(tmp_path_factory: pytest.TempPathFactory, scenes: Path, mlflow_store: str) -> Path:
    """A folder with runs/teacher and runs/student, trained for two steps; the student has CAMs of val and tune."""
    from launcher.config.file import load_config
    from launcher.jobs.infer import infer
    from launcher.training.run import train

    place = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_store)
        for method in ("classify", "distill"):
            train(load_config(write_tiny_yaml(place, scenes, method), ["train.steps=2"]))
        for split in ("val", "tune"):
            infer(Path("runs/student"), split, scenes / split)
    return place


@pytest.fixture
def run(in_tmp: Path, finished_runs: Path) -> Path:
    """A copy of the student of finished_runs, with its teacher beside it."""
    shutil.copytree(finished_runs / "runs", in_tmp / "runs")
    return Path("runs/student")
