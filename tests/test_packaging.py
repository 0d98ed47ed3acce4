"""Files beside the packages that say the version, the Pythons or the extras again."""

import configparser
import re
import runpy
import sys

import pytest
import yaml
from support.places import ROOT

import wsss

SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
PYTHONS = re.findall(r"Python :: (3\.\d+)", SETUP["metadata"]["classifiers"])
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def read_yaml(name):
    return yaml.safe_load((ROOT / name).read_text())


def test_the_image_of_the_kubernetes_job_is_the_one_that_the_dockerfile_says_how_to_make():
    image = f"REGISTRY/wsss:{wsss.__version__}"
    assert re.findall(r"image: (\S+)", (ROOT / "configs/kubernetes/job.yaml").read_text()) == [image]
    assert set(re.findall(r"REGISTRY/\S+", DOCKERFILE)) == {image}


def test_the_dockerfile_installs_everything_from_what_is_not_ignored():
    (python,) = re.findall(r"^FROM python:(3\.\d+)", DOCKERFILE, re.MULTILINE)
    assert python in PYTHONS and tuple(map(int, python.split("."))) < (3, 13)  # on which pydensecrf builds
    assert "'/src[all]'" in DOCKERFILE
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert kept >= {"launcher", "shards", "wsss", "configs", "setup.cfg", "setup.py", "pyproject.toml", "README.md"}
    assert all((ROOT / name).exists() for name in kept)


def test_ci_runs_the_oldest_and_the_newest_python():
    jobs = read_yaml(".github/workflows/ci.yml")["jobs"]
    job, oldest = jobs["test"], jobs["oldest"]
    assert oldest["steps"][1]["with"] == {"python-version": PYTHONS[0]}
    assert "--resolution lowest-direct" in oldest["steps"][2]["run"]
    tested = job["strategy"]["matrix"]["python"]
    assert (tested[0], tested[-1]) == (PYTHONS[0], PYTHONS[-1]) and set(tested) <= set(PYTHONS)
    assert job["steps"][-1] == {"run": ".ci/run"}
    assert SETUP["options"]["python_requires"] == f">={PYTHONS[0]}"


def test_the_citation_is_of_this_version_and_names_what_is_implemented():
    said = read_yaml("CITATION.cff")
    assert said["version"] == wsss.__version__ and said["license"] == SETUP["metadata"]["license"]
    titles = " ".join(reference["title"] for reference in said["references"])
    assert all(name in titles for name in ("Cross-architecture Consistency", "M-SEE", "Token Contrast"))
    assert all(reference["authors"] and reference["year"] for reference in said["references"])


def test_windows_is_refused_with_what_to_take(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ImportError, match="does not run on Windows itself; take WSL2"):
        runpy.run_path(str(ROOT / "shards/__init__.py"))


def test_make_installs_everything():
    assert "'.[all,test]'" in (ROOT / "Makefile").read_text()
