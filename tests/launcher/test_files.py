import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.places import ROOT, environment

from launcher import files
from launcher.config.file import load_config
from launcher.errors import ConfigError
from launcher.files import find_shipped, list_shipped, place_run, root_of, typed
from launcher.studies.table import load_study, studies

SHIPPED = ROOT / "configs"


def test_a_config_is_the_file_itself_then_one_of_the_working_folder_then_one_that_ships(in_tmp):
    for named in ("demo/teacher", "demo/teacher.yaml", "configs/demo/teacher.yaml"):
        assert find_shipped(named) == SHIPPED / "demo/teacher.yaml"
        assert load_config(Path(named)).name == "demo/teacher"
    own = in_tmp / "configs/demo/teacher.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    assert find_shipped("demo/teacher").resolve() == own
    Path("teacher.yaml").write_text("")
    assert find_shipped("teacher.yaml") == Path("teacher.yaml")
    assert find_shipped("deepspeed/zero2.json") == SHIPPED / "deepspeed/zero2.json"
    assert find_shipped("demo/teacher.yml") == Path("demo/teacher.yml")  # told as it was named


def test_a_config_that_is_not_there_is_told_with_those_that_ship(in_tmp):
    with pytest.raises(
        ConfigError, match=r"demo/pupil: config file is missing; `wsss init DIR` .* demo/student, demo/tea"
    ):
        load_config(Path("demo/pupil"))


def test_studies_are_listed_from_any_folder_and_those_of_the_working_folder_come_first(in_tmp):
    assert set(studies()) == {path.stem for path in SHIPPED.glob("studies/*.yaml")}
    assert load_study("configs/studies/voc_mini.yaml") == load_study("voc_mini")
    own = Path("configs/studies/voc_mini.yaml")
    own.parent.mkdir(parents=True)
    own.write_text((SHIPPED / "studies/voc_mini.yaml").read_text().replace('title: "', 'title: "Mine. '))
    assert load_study("voc_mini").title.startswith("Mine. ")
    assert list_shipped("studies/*")["studies/voc_mini"] == own


def test_where_runs_lie_is_said_by_a_variable(tmp_path):
    program = """
import os, sys
for runs in sys.argv[1:]:
    os.environ["WSSS_RUNS"] = runs
    for name in [name for name in sys.modules if name.partition(".")[0] == "launcher"]:
        del sys.modules[name]
    from pathlib import Path
    from launcher.config.file import load_config
    from launcher.files import root_of
    from launcher.run.folder import run_folder
    from launcher.tracking.mlflow_store import find_store
    config = load_config(Path("demo/student"))
    print(run_folder(config), config.teacher, root_of(run_folder(config)), find_store()[0])
"""
    variable, places = [f"{tmp_path}/scratch", ""], [f"{tmp_path}/scratch", "runs"]
    done = subprocess.run(
        [sys.executable, "-c", program, *variable],
        cwd=tmp_path,
        env=environment({"MLFLOW_TRACKING_URI": ""}),
        capture_output=True,
        text=True,
        check=True,
    )
    for line, runs in zip(done.stdout.splitlines(), places, strict=True):
        whole = tmp_path / runs
        wanted = [f"{runs}/demo/student", f"{runs}/demo/teacher", str(whole), f"sqlite:///{whole}/mlflow.db"]
        assert line.split() == wanted


def test_runs_as_pages_name_them_lie_below_that_folder(in_tmp, monkeypatch):
    monkeypatch.setattr(files, "RUNS", Path("/scratch/me"))
    assert place_run(Path("runs/demo/x")) == Path("/scratch/me/demo/x") and place_run(Path("runs")) == Path(
        "/scratch/me"
    )
    assert place_run(Path("elsewhere/x")) == Path("elsewhere/x")
    Path("runs/demo/x").mkdir(parents=True)
    assert place_run(Path("runs/demo/x")) == Path("runs/demo/x")  # what is there is meant
    assert root_of(Path("/scratch/me/demo/x")) == Path("/scratch/me")
    assert root_of(Path("/other/runs/demo/x")) == Path("/other/runs")
    assert root_of(Path("/other/x")) == Path("/scratch/me")


def test_a_command_to_type_survives_blanks_in_its_folders():
    assert typed("evaluate", Path("runs/a")) == "wsss evaluate runs/a"
    assert shlex.split(typed("infer", Path("/scratch 1/läufe/a"), "--split", "train")) == [
        *("wsss", "infer", "/scratch 1/läufe/a", "--split", "train")
    ]
