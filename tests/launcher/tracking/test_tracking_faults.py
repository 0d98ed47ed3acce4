"""Tracking never ends or slows a run: MLflow away, silent, refusing; a full disk; a killed process; a clock behind."""

import subprocess
import sys
import time
from pathlib import Path
from resource import RLIMIT_FSIZE, getrlimit, setrlimit
from types import SimpleNamespace

import mlflow
import pytest
from PIL import Image
from support.servers import SilentServer

from launcher.errors import RunError
from launcher.evaluation import report
from launcher.tracking.delivery import LOCK
from launcher.tracking.journal import Journal, read_lines
from launcher.tracking.mlflow_sink import MlflowSink
from launcher.tracking.sync import sync
from launcher.tracking.tracker import RunTracker, open_tracker, read_metrics
from launcher.tracking.unsent import count_unsent, read_sent

NOBODY = "http://127.0.0.1:9"  # nothing listens on the discard port


@pytest.fixture(autouse=True)
def no_retries(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture
def run(in_tmp):
    folder = in_tmp / "runs/some/run"
    folder.mkdir(parents=True)
    return folder


def points(run, name="train/loss"):
    history = mlflow.MlflowClient().get_metric_history(read_sent(run, "mlflow")["run_id"], name)
    return [(point.step, point.value) for point in history]


def tracked(run, **options):
    return RunTracker(run, sinks=[MlflowSink()], experiment="faults", **{"resumed_at": 0, **options})


def test_what_an_absent_mlflow_missed_is_sent_later_and_only_once(run, monkeypatch, mlflow_store, capsys):
    monkeypatch.setattr("launcher.tracking.tracker.CLOSE_S", 3.0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY)
    tracker = tracked(run, params={"lr": 0.1}, tags={"who": "me"}, datasets={"train": ("scenes", run, "0123456789")})
    for step in range(1, 6):
        tracker.log({"train/loss": 1 / step}, step)
    tracker.image("gallery", Image.new("RGB", (4, 4)), 5)
    (run / "config.yaml").write_text("name: x")
    tracker.artifact(run / "config.yaml")
    assert not tracker.close()
    said = capsys.readouterr().err
    assert said.count("MLflow does not accept the metrics of") == 1
    assert f"MLflow lacks 5 lines of metrics and 2 files of {run}; to send them later: wsss track sync {run}" in said
    assert [line["step"] for line in read_metrics(run)] == [1, 2, 3, 4, 5]

    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_store)
    assert sync(run.parent)
    client = mlflow.MlflowClient(mlflow_store)
    run_id = read_sent(run, "mlflow")["run_id"]
    stored = client.get_run(run_id)
    assert stored.data.params == {"lr": "0.1"} and stored.data.tags["who"] == "me"
    assert stored.info.status == "FINISHED" and stored.inputs.dataset_inputs[0].dataset.digest == "0123456789"
    assert points(run) == [(step, 1 / step) for step in range(1, 6)]
    assert f"{run}: sent 5 points and 2 files" in capsys.readouterr().out

    def everything():
        names = sorted(file.path for path in (None, "images") for file in client.list_artifacts(run_id, path))
        runs = client.search_runs([stored.info.experiment_id], f"tags.`wsss.key` = '{stored.data.tags['wsss.key']}'")
        return names, [found.info.run_id for found in runs], points(run), client.get_run(run_id).info.end_time

    once = everything()
    assert len(once[0]) == 5  # config.yaml, gallery/, images/ and a picture in two sizes
    assert sync(run)
    assert f"{run}: sent 0 points and 0 files" in capsys.readouterr().out
    (run / "tracking/mlflow/sent.json").unlink()  # even a sync that has forgotten what it sent
    assert sync(run)
    assert everything()[:3] == once[:3]


def test_a_silent_mlflow_holds_up_neither_a_step_nor_the_end_of_the_run(run, monkeypatch, capsys):
    monkeypatch.setattr("launcher.tracking.tracker.CLOSE_S", 0.2)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "300")
    with SilentServer() as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        tracker = tracked(run)
        longest_s = 0.0
        for step in range(100):
            started = time.perf_counter()
            tracker.log({"train/loss": step}, step)
            longest_s = max(longest_s, time.perf_counter() - started)
        started = time.perf_counter()
        assert not tracker.close()
        assert longest_s < 20 and time.perf_counter() - started < 60  # the server would hold each up for 300 s
    assert "MLflow lacks 100 lines of metrics" in capsys.readouterr().err
    assert len(read_metrics(run)) == 100


def test_a_killed_run_is_reported_as_killed_and_goes_on_as_running(run):
    tracked(run, send=False).log({"train/loss": 1}, 1)  # no close: its process is gone
    assert sync(run)
    run_id = read_sent(run, "mlflow")["run_id"]
    assert mlflow.get_run(run_id).info.status == "KILLED"
    assert not any(count_unsent(run, "mlflow"))
    again = tracked(run)
    again.log({"train/loss": 2}, 2)
    assert again.close()
    assert read_sent(run, "mlflow")["run_id"] == run_id and mlflow.get_run(run_id).info.status == "FINISHED"


def test_a_metric_that_mlflow_refuses_is_left_out_and_named_and_the_others_arrive(run, capsys):
    tracker = tracked(run)
    for step in (1, 2, 3):
        tracker.log({"train/loss": step, "train/a+b": 0.0}, step)
    assert tracker.close()
    assert points(run) == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert list(read_sent(run, "mlflow")["refused"]) == ["metric train/a+b"]
    assert capsys.readouterr().err.count("MLflow refuses metric train/a+b") == 1
    assert all(line["train/a+b"] == 0.0 for line in read_metrics(run))


def test_a_run_that_somebody_deleted_from_mlflow_is_begun_anew_with_all_its_points(run):
    first = tracked(run, params={"a": 1})
    first.log({"train/loss": 1}, 1)
    assert first.close()
    gone = read_sent(run, "mlflow")["run_id"]
    mlflow.MlflowClient().delete_run(gone)
    second = tracked(run, resumed_at=1)
    second.log({"train/loss": 2}, 2)
    assert second.close() and read_sent(run, "mlflow")["run_id"] != gone
    assert points(run) == [(1, 1.0), (2, 2.0)]
    assert mlflow.get_run(read_sent(run, "mlflow")["run_id"]).data.params == {"a": "1"}


def test_a_run_whose_process_goes_on_is_left_to_it(run, capsys):
    tracked(run, send=False).log({"train/loss": 1}, 1)
    (run / "tracking/mlflow").mkdir()
    lock = str(run / "tracking/mlflow" / LOCK)
    hold = f"import fcntl, time\nf = open({lock!r}, 'a')\nfcntl.lockf(f, fcntl.LOCK_EX)\nprint(flush=True)\n"
    with subprocess.Popen([sys.executable, "-c", hold + "time.sleep(600)"], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        sync(run)
        assert "its own process is still running" in capsys.readouterr().out
        assert count_unsent(run, "mlflow") == (1, 0, True)
        process.kill()
    assert sync(run) and not any(count_unsent(run, "mlflow"))


def test_a_full_disk_ends_no_run_and_its_lines_are_written_when_there_is_place(run, capsys):
    tracker = tracked(run, send=False)
    tracker.log({"train/loss": 1}, 1)
    soft, hard = getrlimit(RLIMIT_FSIZE)
    try:
        setrlimit(RLIMIT_FSIZE, ((run / "metrics.jsonl").stat().st_size + 10, hard))  # the next line fits in part
        tracker.log({"train/loss": 2}, 2)
        tracker.log({"train/loss": 3}, 3)
    finally:
        setrlimit(RLIMIT_FSIZE, (soft, hard))
    assert capsys.readouterr().err.count("cannot write") == 1
    assert [line["step"] for line in read_metrics(run)] == [1]
    tracker.log({"train/loss": 4}, 4)
    assert [line["step"] for line in read_metrics(run)] == [1, 2, 3, 4]


def test_lines_after_a_half_written_one_are_read(run):
    path = run / "metrics.jsonl"
    path.write_text('{"step": 1, "time": 5.0}\n{"step": 2, "ti')
    Journal(path).append({"step": 3})
    assert [line["step"] for line in read_lines(path)] == [1, 3]


def test_times_grow_even_where_the_clock_is_behind(run, monkeypatch):
    path = run / "metrics.jsonl"
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    Journal(path, floor=2000.0).append({"step": 1})
    Journal(path).append({"step": 2})
    assert [line["time"] for line in read_lines(path)] == pytest.approx([2000.001, 2000.002])


def test_a_report_without_mlflow_asks_it_once_and_leaves_the_page_to_sync(in_tmp, monkeypatch):
    monkeypatch.setattr("launcher.tracking.tracker.CLOSE_S", 3.0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY)
    config = SimpleNamespace(tracking=SimpleNamespace(experiment="faults", to=["mlflow"]))
    monkeypatch.setattr(report, "Run", lambda run: SimpleNamespace(config=config))
    page = in_tmp / "runs/report.html"
    answers, asked = True, []
    for name in ("a", "b"):
        (Path("runs") / name).mkdir(parents=True)
        page.write_text("<p>")
        monkeypatch.setattr(
            report,
            "open_tracker",
            lambda run, settings, send: asked.append(send) or open_tracker(run, settings, send=send),
        )
        answers = report.attach(Path("runs") / name, page, send=answers)
    assert asked == [True, False]
    assert [line["file"] for line in read_lines(Path("runs/b/tracking/files.jsonl"))] == [str(page)]


def test_a_folder_without_runs_is_named(in_tmp):
    with pytest.raises(RunError, match="no run to send in or below it"):
        sync(in_tmp)


def test_a_run_may_be_evaluated_while_it_is_trained(run):
    trained, evaluated = Journal(run / "m.jsonl"), Journal(run / "m.jsonl")
    trained.append({"step": 1})
    evaluated.append({"step": 1, "final": 0.5})
    trained.append({"step": 2})
    evaluated.append({"step": 2, "final": 0.75})
    lines = list(read_lines(run / "m.jsonl"))
    assert [line.get("final") for line in lines] == [None, 0.5, None, 0.75]
    assert sorted(line["time"] for line in lines) == [line["time"] for line in lines]
