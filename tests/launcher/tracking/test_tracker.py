from pathlib import Path

import mlflow
import pytest
from PIL import Image

from launcher.config.sections import TrackingConfig
from launcher.errors import RunError
from launcher.tracking.mlflow_sink import MlflowSink
from launcher.tracking.mlflow_store import open_client
from launcher.tracking.protocol import NoTracker
from launcher.tracking.tracker import RunTracker, open_tracker, read_metrics
from launcher.tracking.unsent import read_sent, read_wanted


@pytest.fixture
def run(in_tmp):
    folder = in_tmp / "runs/some/run"
    folder.mkdir(parents=True)
    return folder


def run_id_of(run):
    return read_sent(run, "mlflow")["run_id"]


def test_mlflow_gets_params_metrics_tags_dataset_pictures_and_artifacts(run):
    tracker = RunTracker(
        run,
        sinks=[MlflowSink()],
        experiment="test",
        params={"train.lr": 0.1},
        tags={"mlflow.source.git.commit": "abc"},
        datasets={"train": ("scenes", run, "0123456789abcdef")},
    )
    tracker.log({"train/loss": 0.5}, 1)
    tracker.log({"train/loss": 0.25}, 2)
    tracker.image("a/b", Image.new("RGB", (4, 4)), 1)
    tracker.image("gallery", Image.new("RGB", (4, 4)), 2)
    (run / "config.yaml").write_text("name: x")
    tracker.artifact(run / "config.yaml")
    tracker.close()
    client = mlflow.MlflowClient()
    stored = client.get_run(run_id_of(run))
    assert stored.data.params == {"train.lr": "0.1"} and stored.data.tags["mlflow.source.git.commit"] == "abc"
    assert stored.info.status == "FINISHED"
    history = client.get_metric_history(run_id_of(run), "train/loss")
    assert [(point.step, point.value) for point in history] == [(1, 0.5), (2, 0.25)]
    assert stored.inputs.dataset_inputs[0].dataset.digest == "0123456789abcdef"
    names = [file.path for file in client.list_artifacts(run_id_of(run))]
    assert "config.yaml" in names
    pictures = [file.path for file in client.list_artifacts(run_id_of(run), "images")]
    for start in (
        "images/gallery+step+2+timestamp+",
        "images/a~b+step+1+timestamp+",
    ):  # MLflow's pages read these names
        assert sorted(name[-4:] for name in pictures if name.startswith(start)) == [".png", "webp"]
    assert stored.data.tags["mlflow.loggedImages"] == "True"


def test_a_store_holds_our_runs_and_no_others(run, in_tmp, monkeypatch):
    mlflow.end_run()  # one that another test left open would take the place of a new one
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{in_tmp}/own.db")
    tracker = RunTracker(run, sinks=[MlflowSink()], experiment="test")
    tracker.image("gallery", Image.new("RGB", (4, 4)), 1)
    tracker.close()
    client = mlflow.MlflowClient()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    assert [found.info.run_id for found in client.search_runs(experiments)] == [run_id_of(run)]


@pytest.mark.parametrize(
    ("run", "named", "experiment", "name"),
    [
        ("runs/table/row_seed3", None, "table", "row_seed3"),
        ("runs/mine/deep/student", None, "mine/deep", "student"),
        ("runs/student", None, "wsss", "student"),
        ("elsewhere/student", None, "wsss", "student"),
        ("runs/table/row_seed3", "ours", "ours", "table/row_seed3"),
    ],
)
def test_runs_of_one_folder_are_one_experiment_of_mlflow_unless_a_config_names_one(
    in_tmp, run, named, experiment, name
):
    folder = Path(run)
    folder.mkdir(parents=True)
    open_tracker(folder, TrackingConfig(to=(), experiment=named)).close()
    wanted = read_wanted(folder)
    assert (wanted["experiment"], wanted["name"]) == (experiment, name)


def test_a_resumed_run_goes_on_in_the_same_mlflow_run_and_drops_what_it_does_again(run):
    first = RunTracker(run, sinks=[MlflowSink()], experiment="test", params={"a": 1})
    for step in (1, 2, 3):
        first.log({"train/loss": step}, step)
    first.close("FAILED")
    run_id = run_id_of(run)
    second = RunTracker(run, sinks=[MlflowSink()], experiment="test", params={"a": 2}, resumed_at=2)
    second.log({"train/loss": 30}, 3)
    second.close()
    assert run_id_of(run) == run_id
    assert [line["train/loss"] for line in read_metrics(run)] == [1, 2, 30]
    assert mlflow.get_run(run_id).data.params == {"a": "1"}


def test_the_default_store_is_an_sqlite_file_below_runs(run, in_tmp, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    tracker = RunTracker(run, sinks=[MlflowSink()], experiment="mine")
    tracker.close()
    assert (in_tmp / "runs/mlflow.db").is_file()
    assert mlflow.get_experiment_by_name("mine").artifact_location == (in_tmp / "runs/mlartifacts").as_uri()


def test_a_half_written_last_line_is_dropped_and_any_other_is_an_error(run):
    path = run / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "tra')
    assert read_metrics(run) == [{"step": 1}]
    path.write_text('{"step": 1, "tra\n{"step": 2}\n')
    with pytest.raises(RunError, match=r"metrics.jsonl: the line that ends at byte \d+ is not JSON"):
        read_metrics(run)


def test_other_ranks_write_nothing(run):
    tracker = NoTracker()
    tracker.log({"train/loss": 1.0}, 1)
    tracker.close()
    assert list(run.iterdir()) == []


def test_a_store_that_two_runs_create_at_once_costs_another_attempt_and_nothing_else(run, monkeypatch, capsys):
    from sqlalchemy.exc import OperationalError

    attempts = []

    def collide(*_):
        attempts.append(1)
        if len(attempts) == 1:
            raise OperationalError("ALTER TABLE metrics ADD COLUMN step", {}, Exception("duplicate column name: step"))
        return open_client()

    monkeypatch.setattr("launcher.tracking.mlflow_sink.open_client", collide)
    tracker = RunTracker(run, sinks=[MlflowSink()], experiment="test")
    tracker.log({"train/loss": 1.0}, 1)
    assert tracker.close() and len(attempts) == 2
    assert "duplicate column name" in capsys.readouterr().err
    assert mlflow.MlflowClient().get_metric_history(run_id_of(run), "train/loss")[0].value == 1.0
