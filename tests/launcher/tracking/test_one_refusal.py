"""One thing that a sink does not take holds up nothing else: it is left out, or set aside with its reason."""

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from PIL import Image

from launcher.tracking.mlflow_sink import MlflowSink
from launcher.tracking.sync import sync
from launcher.tracking.tensorboard_sink import TensorboardSink
from launcher.tracking.tracker import RunTracker
from launcher.tracking.unsent import count_unsent, read_sent


def tracked(folder, sink=MlflowSink, **options):
    return RunTracker(folder, sinks=[sink()], experiment="one refusal", **{"resumed_at": 0, **options})


def stored(folder):
    return mlflow.MlflowClient().get_run(read_sent(folder, "mlflow")["run_id"])


def files_of(folder, path=None):
    return [file.path for file in mlflow.MlflowClient().list_artifacts(read_sent(folder, "mlflow")["run_id"], path)]


def make_files(folder, *names):
    for name in names:
        (folder / name).write_text(name)
        yield folder / name


def test_a_place_for_files_that_cannot_be_written_keeps_neither_figures_nor_the_end_from_mlflow(
    folder, monkeypatch, tmp_path, capsys
):
    """As the artifact root of a server that is a folder there; S3 without credentials."""
    uri = f"sqlite:///{tmp_path}/other.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.MlflowClient(uri).create_experiment("one refusal", artifact_location="file:///proc/server_only/artifacts")
    tracker = tracked(folder)
    for path in make_files(folder, "config.yaml", "evaluation.json"):
        tracker.artifact(path)
    tracker.image("gallery", Image.new("RGB", (4, 4)), 1)
    tracker.log({"train/loss": 0.5}, 1)
    assert not tracker.close("FINISHED")
    said = capsys.readouterr().err
    assert said.count("does not accept the file") == 1 and "does not accept the figures" not in said
    assert f"MLflow lacks 0 lines of metrics and 3 files of {folder}; to send them later: wsss track sync" in said
    assert stored(folder).info.status == "FINISHED" and stored(folder).data.metrics == {"train/loss": 0.5}
    assert count_unsent(folder, "mlflow") == (0, 3, False)
    assert not sync(folder)  # says what is left, and ends
    said = capsys.readouterr()
    assert "sent 0 points and 0 files" in said.out and "set aside: config.yaml: " in said.err
    assert "server_only" in said.err


@pytest.fixture
def refuse_big(monkeypatch):
    """MLflow as behind a proxy that takes no file named big; yields the list of errors that are left to raise."""
    plain, answers = mlflow.MlflowClient.log_artifact, [True]

    def log(self, run_id, path, *rest):
        if "big" in path and answers:
            raise MlflowException("API request failed with error code 413 != 200: Request Entity Too Large")
        return plain(self, run_id, path, *rest)

    monkeypatch.setattr(mlflow.MlflowClient, "log_artifact", log)
    return answers


def test_later_files_pass_one_that_is_too_big_and_sync_sends_it_when_it_may(folder, refuse_big, capsys):
    tracker = tracked(folder)
    for path in make_files(folder, "big.json", "small.json"):
        tracker.artifact(path)
    assert not tracker.close("FINISHED")
    assert files_of(folder) == ["small.json"] and stored(folder).info.status == "FINISHED"
    assert "413" in read_sent(folder, "mlflow")["aside"]["big.json"]["why"]
    assert not sync(folder)
    refuse_big.clear()
    capsys.readouterr()
    assert sync(folder) and "sent 0 points and 1 files" in capsys.readouterr().out
    assert files_of(folder) == ["big.json", "small.json"] and not any(count_unsent(folder, "mlflow"))


def test_a_file_that_was_set_aside_goes_with_its_newer_self_or_when_it_is_gone(folder, refuse_big):
    tracker = tracked(folder)
    for path in make_files(folder, "big.json", "big.yaml"):
        tracker.artifact(path)
    assert not tracker.close("FINISHED")
    refuse_big.clear()
    (folder / "big.yaml").unlink()
    again = tracked(folder, resumed_at=None)
    again.artifact(folder / "big.json")
    assert again.close(None)
    assert list(read_sent(folder, "mlflow")["refused"]) == [f"file {folder / 'big.yaml'}"]
    assert files_of(folder) == ["big.json"]


def test_one_parameter_or_tag_that_is_refused_takes_no_other_with_it(folder, capsys):
    params = {"train.lr": 1e-3, "train.seed": 0, "refine.cues.sam(vit-b)": "cues/sam"}
    tracker = tracked(folder, params=params, tags={"who": "me", "a(b)": "c"})
    assert tracker.close("FINISHED")
    assert stored(folder).data.params == {"train.lr": "0.001", "train.seed": "0"}
    assert stored(folder).data.tags["who"] == "me"
    refused = list(read_sent(folder, "mlflow")["refused"])
    assert "param refine.cues.sam(vit-b)" in refused
    assert capsys.readouterr().err.count("MLflow refuses param refine.cues.sam(vit-b)") == 1


def test_a_server_that_knows_no_data_sets_gets_all_the_rest(folder, monkeypatch, capsys):
    def unknown(*_):
        raise MlflowException("No API found for 'runs/log-inputs'", error_code=INVALID_PARAMETER_VALUE)

    monkeypatch.setattr(mlflow.MlflowClient, "log_inputs", unknown)
    tracker = tracked(folder, params={"a": 1}, datasets={"train": ("scenes", folder, "0123")})
    tracker.log({"train/loss": 0.5}, 1)
    assert tracker.close("FINISHED")
    assert stored(folder).data.metrics == {"train/loss": 0.5} and stored(folder).data.params == {"a": "1"}
    assert list(read_sent(folder, "mlflow")["refused"]) == ["dataset train"]


def test_figures_pass_a_proxy_that_takes_only_small_requests(folder, monkeypatch):
    plain = mlflow.MlflowClient.log_batch

    def log(self, run_id, metrics=(), **rest):
        if len(metrics) > 3:
            raise MlflowException("API request failed with error code 413 != 200")
        return plain(self, run_id, metrics=metrics, **rest)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", log)
    tracker = tracked(folder)
    for step in range(1, 21):
        tracker.log({"train/loss": float(step)}, step)
    assert tracker.close("FINISHED")
    history = mlflow.MlflowClient().get_metric_history(read_sent(folder, "mlflow")["run_id"], "train/loss")
    assert [point.step for point in history] == list(range(1, 21))


def test_figures_that_are_not_taken_now_keep_neither_files_nor_the_end_back(folder, monkeypatch, capsys):
    monkeypatch.setattr("launcher.tracking.tracker.CLOSE_S", 5.0)

    def fail(*_, **given):
        if given.get("metrics"):
            raise MlflowException("the table of metrics is broken")

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", fail)
    tracker = tracked(folder)
    tracker.log({"train/loss": 0.5}, 1)
    tracker.artifact(*make_files(folder, "config.yaml"))
    assert not tracker.close("FINISHED")
    assert stored(folder).info.status == "FINISHED" and files_of(folder) == ["config.yaml"]
    assert "MLflow lacks 1 lines of metrics and 0 files" in capsys.readouterr().err


@pytest.mark.parametrize("sink", [MlflowSink, TensorboardSink])
def test_a_picture_that_a_power_cut_emptied_is_left_out(folder, sink):
    tracker = tracked(folder, sink, send=False)
    tracker.image("gallery", Image.new("RGB", (4, 4)), 1)
    tracker.image("gallery", Image.new("RGB", (4, 4)), 2)
    tracker.log({"train/loss": 0.5}, 1)
    first, _ = sorted((folder / "images").iterdir())
    first.write_bytes(b"")
    assert tracked(folder, sink, resumed_at=None).close("FINISHED")
    assert list(read_sent(folder, sink.name)["refused"]) == [f"file {first}"]
