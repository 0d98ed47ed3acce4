"""Where MLflow lies when nobody says so: in the folder of runs that a run lies in, wherever one stands."""

import os
import stat
from pathlib import Path

import pytest

from launcher.files import root_of
from launcher.tracking.mlflow_sink import MlflowSink
from launcher.tracking.mlflow_store import find_store, open_client
from launcher.tracking.tracker import RunTracker


@pytest.fixture
def default(in_tmp, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (in_tmp / "project/runs/voc/a").mkdir(parents=True)
    return in_tmp / "project"


@pytest.mark.parametrize("stand", [".", "project", "project/runs", "project/runs/voc/a"])
def test_the_store_does_not_depend_on_the_folder_one_stands_in(default, monkeypatch, stand):
    monkeypatch.chdir(default.parent / stand)
    run = Path(*[".."] * (len(Path(stand).parts)), "project/runs/voc/a")
    for given in (run, run.resolve()):
        uri, artifacts = find_store(root_of(given))
        assert uri == f"sqlite:///{default}/runs/mlflow.db" and artifacts == f"file://{default}/runs/mlartifacts"


def test_a_link_to_a_scratch_disk_is_the_folder_of_runs(default, monkeypatch):
    (default / "runs").rename(default.parent / "scratch")
    (default / "runs").symlink_to(default.parent / "scratch")
    monkeypatch.chdir(default)
    assert find_store(root_of(Path("runs/voc/a")))[0] == f"sqlite:///{default.parent}/scratch/mlflow.db"


def test_a_store_that_is_named_is_taken_and_an_empty_name_is_none(default, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somewhere")
    assert find_store(root_of(default / "runs/voc/a")) == ("http://somewhere", None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert find_store(root_of(default / "runs/voc/a"))[0] == f"sqlite:///{default}/runs/mlflow.db"


def test_a_group_that_shares_runs_can_write_to_one_store(default, monkeypatch):
    root, before = default / "runs", os.umask(0o002)
    try:
        open_client(root)[0].search_experiments()
    finally:
        os.umask(before)
    assert stat.S_IMODE((root / "mlflow.db").stat().st_mode) == 0o664
    monkeypatch.setattr("os.access", lambda *_: False)  # the tests may run as root, who may write everything
    with pytest.raises(PermissionError, match=r"mlflow\.db may only be read: .* `chmod g\+w"):
        open_client(root)


def test_runs_of_two_folders_go_to_their_own_stores(default, monkeypatch):
    """MLflow keeps the first one's address in the environment."""
    monkeypatch.chdir(default.parent)
    for project in ("project", "other"):
        run = Path(project) / "runs/b"
        run.mkdir(parents=True)
        tracker = RunTracker(run, sinks=[MlflowSink()], experiment="store", resumed_at=0)
        tracker.log({"train/loss": 1.0}, 1)
        assert tracker.close()
        assert (Path(project) / "runs/mlflow.db").is_file()
    assert not Path("runs").exists()
