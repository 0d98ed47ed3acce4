"""A plain install reads CAMs, trains and refines; what only some work needs says which extra brings it."""

import ast
import configparser
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from support.places import ROOT

from launcher.errors import ConfigError
from launcher.predict.graph import open_onnx, save_onnx
from launcher.processes.zero_settings import read_zero
from launcher.tracking.sinks import SINKS, require_installed
from shards.schema import DataError
from shards.sources.video import frame_count
from wsss import extras
from wsss.extras import MissingPackage, is_installed
from wsss.models.clip import load_clip
from wsss.models.sam import load_sam
from wsss.models.sam_decoder import small_sam
from wsss.models.smp import build_smp
from wsss.refine.concept import load_concept
from wsss.refine.prompted import load_prompted
from wsss.refine.proposals import ProposalOptions, sam_proposals

SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
EXTRAS = SETUP["options.extras_require"]
MODULES = {"pillow": "PIL", "PyYAML": "yaml", "pydensecrf2": "pydensecrf", "segment-anything": "segment_anything"}
MODULES |= {name: name.replace("-", "_") for name in ("huggingface-hub", "segmentation-models-pytorch")}
OF_TORCH = {"triton"}  # comes with its CUDA builds; looked for before it is imported


def modules_of(requirements: str) -> set[str]:
    """What Python imports of the packages that these lines require."""
    names = [re.split(r"[<>=;\[ ]", line)[0] for line in requirements.split("\n") if line and not line.startswith("#")]
    return {MODULES.get(name, name) for name in names}


PLAIN = modules_of(SETUP["options"]["install_requires"])
SOME = set().union(*(modules_of(EXTRAS[name]) for name in EXTRAS if name not in ("all", "test")))


def imports(tree: ast.AST, *, lazy: bool) -> Iterator[str]:
    """Top-level names of the modules that a file imports: when it is itself imported, or `lazy`, inside functions."""
    for node in ast.iter_child_nodes(tree):
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if isinstance(node, ast.Import) and not lazy:
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not lazy:
            yield node.module.split(".")[0]
        elif inside:
            yield from imports(node, lazy=False) if lazy else ()
        elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield from imports(node, lazy=lazy)


def test_what_is_imported_is_required_and_of_an_extra_only_inside_functions():
    ours = {"launcher", "shards", "wsss"}
    for path in sorted(path for package in ours for path in (ROOT / package).rglob("*.py")):
        tree = ast.parse(path.read_text())
        at_once, later = (set(imports(tree, lazy=lazy)) - set(sys.stdlib_module_names) - ours for lazy in (False, True))
        kernels = OF_TORCH if path.stem.endswith("_triton") else set()
        assert at_once <= PLAIN | kernels, f"{path}: {at_once - PLAIN} is not of a plain install"
        assert later <= PLAIN | SOME | OF_TORCH, f"{path}: nothing requires {later - PLAIN - SOME}"


def test_a_plain_install_is_not_required_by_an_extra_and_all_means_all():
    assert not PLAIN & SOME
    named = set(re.findall(r"[\w-]+", re.search(r"\[(.*)\]", EXTRAS["all"])[1]))
    assert named == set(EXTRAS) - {"all", "test", "docs"}  # what no run needs


def test_every_extra_that_is_named_exists():
    named, patterns = {}, ("launcher/**/*.py", "shards/**/*.py", "wsss/**/*.py", "*.md", "docs/*.md")
    for path in (path for pattern in patterns for path in ROOT.glob(pattern)):
        text = path.read_text()
        found = {one for names in re.findall(r"wsss\[([\w,-]+)\]", text) for one in names.split(",")}
        named[path.name] = found | set(re.findall(r'needs\("(\w+)"', text))
    assert set().union(*named.values()) >= {
        "crf",
        "clip",
        "mlflow",
        "onnx",
        "s3",
        "sam",
        "tensorboard",
        "video",
        "zero",
    }
    assert {name: unknown for name, found in named.items() if (unknown := found - set(EXTRAS))} == {}


@pytest.fixture
def plain(monkeypatch):
    """Python as it is where nothing but a plain install is."""
    for name in list(sys.modules):
        if name.split(".")[0] in SOME:
            monkeypatch.delitem(sys.modules, name)
    for name in SOME:
        monkeypatch.setitem(sys.modules, name, None)
    found = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name in SOME else found(name))


def load_with(name):
    return lambda: SINKS[name]().load()


@pytest.mark.parametrize(
    ("extra", "work"),
    [
        ("sam", lambda: load_sam(None, "vit_b")),
        ("sam", lambda: small_sam(image_size=32, embed_dim=8, depth=1, num_heads=1)),
        ("sam", lambda: sam_proposals(None, np.zeros((8, 8, 3), np.uint8), ProposalOptions())),
        ("clip", lambda: load_clip("nowhere")),
        ("clip", lambda: load_prompted("nowhere")),
        ("clip", lambda: load_concept("nowhere")),
        ("onnx", lambda: open_onnx(Path("student.onnx"))),
        ("onnx", lambda: save_onnx(None, Path("student.onnx"), {}, [])),
        ("mlflow", load_with("mlflow")),
        ("tensorboard", load_with("tensorboard")),
        ("smp", lambda: build_smp(1, architecture="unet", encoder="resnet18")),
    ],
)
def test_work_whose_package_is_not_installed_says_which_extra_brings_it(plain, extra, work):
    said = rf"needs the package '.*', which is not installed: pip install 'wsss\[{extra}\]'"
    with pytest.raises(MissingPackage, match=said):
        work()


def test_a_config_that_needs_an_extra_is_refused_with_its_name(plain, tiny_config):
    with pytest.raises(ConfigError, match=r"launch.zero needs the package 'deepspeed', .* pip install 'wsss\[zero\]'"):
        read_zero(tiny_config("classify", "launch.zero=2"))
    with pytest.raises(ConfigError, match=r"tracking.to: 'mlflow' needs .* pip install 'wsss\[mlflow\]'"):
        require_installed(["mlflow"])


def test_a_video_needs_an_extra(plain, tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"")
    with pytest.raises(DataError, match=r"clip.mp4: videos are read by the package 'av'.* pip install 'wsss\[video\]'"):
        frame_count(tmp_path / "clip.mp4")


def test_a_plain_install_trains_infers_and_refines(plain, in_tmp, tiny_config, scenes, capsys):
    from launcher.config.sections import RefineConfig
    from launcher.jobs.infer import infer
    from launcher.jobs.refine import refine
    from launcher.training.preflight import preflight
    from launcher.training.run import train

    config = tiny_config("classify", "train.steps=2")
    assert config.tracking.to == ()
    preflight(config)
    assert (
        "metrics are written only to the run's folder; for MLflow: pip install 'wsss[mlflow]'"
        in capsys.readouterr().err
    )
    preflight(tiny_config("classify", "tracking.to=[]"))
    assert "pip install" not in capsys.readouterr().err  # it was asked for
    train(config)
    run = Path("runs/teacher")
    infer(run, "val", scenes / "val")
    (masks,) = refine(run, ["val"], RefineConfig(workers=1))
    assert list(masks.glob("*.tar"))


def test_a_folder_of_a_packages_name_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "wsss_stray").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not is_installed("wsss_stray") and not is_installed("wsss_absent") and is_installed(torch.__name__)
