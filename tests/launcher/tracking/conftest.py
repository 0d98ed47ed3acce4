import pytest


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """Runs that end wait for MLflow even on a machine that has other things to do."""
    monkeypatch.setattr("launcher.tracking.tracker.CLOSE_S", 250.0)


@pytest.fixture
def folder(in_tmp):
    """Of a run, empty."""
    folder = in_tmp / "runs/some/run"
    folder.mkdir(parents=True)
    return folder
