"""A real MLflow server on loopback: restarted under a run, slow, and with answers that get lost."""

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request

import mlflow
import pytest
from PIL import Image
from support.servers import Proxy, free_port

from launcher.tracking.mlflow_sink import MlflowSink
from launcher.tracking.tracker import RunTracker, read_metrics
from launcher.tracking.unsent import read_sent

START_S = 280


class Server:
    """`mlflow server` in its own process group."""

    def __init__(self, folder):
        self.folder, self.port = folder, free_port()
        self.process = None

    def start(self):
        command = [
            *(
                sys.executable,
                "-m",
                "mlflow",
                "server",
                "--host",
                "127.0.0.1",
                "--port",
                str(self.port),
                "--workers",
                "1",
            ),
            *("--backend-store-uri", f"sqlite:///{self.folder}/server.db"),
            *("--artifacts-destination", str(self.folder / "artifacts")),
        ]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                time.sleep(0.2)
        raise RuntimeError(f"no server after {START_S} s: {(self.folder / 'server.log').read_text()[-2000:]}")

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    @property
    def uri(self):
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def run(in_tmp, monkeypatch):
    monkeypatch.setattr("launcher.tracking.sender.LAST_PAUSE_S", 1.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    folder = in_tmp / "runs/some/run"
    folder.mkdir(parents=True)
    return folder


def stored(server, run, name="train/loss"):
    client = mlflow.MlflowClient(server.uri)
    history = client.get_metric_history(read_sent(run, "mlflow")["run_id"], name)
    return [(point.step, point.value) for point in history]


def test_answers_that_get_lost_make_nothing_twice(server, run, monkeypatch):
    with Proxy(server.port, lose=1) as proxy:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
        tracker = RunTracker(
            run,
            sinks=[MlflowSink()],
            experiment="lost",
            params={f"p{n}": n for n in range(250)},
            datasets={"train": ("scenes", run, "0123456789")},
            resumed_at=0,
        )
        for step in range(1, 6):
            tracker.log({"train/loss": step, **{f"m{n}": n for n in range(400)}}, step)
        tracker.image("gallery", Image.new("RGB", (4, 4)), 5)
        assert tracker.close()
        assert {path.rsplit("/", 1)[1] for path in proxy.lost} >= {"create", "log-batch", "log-inputs", "update"}
    assert stored(server, run) == [(step, float(step)) for step in range(1, 6)]
    client = mlflow.MlflowClient(server.uri)
    runs = client.search_runs([client.get_experiment_by_name("lost").experiment_id])
    assert [found.info.run_id for found in runs] == [read_sent(run, "mlflow")["run_id"]] and runs[
        0
    ].info.status == "FINISHED"
    assert [step for step, _ in stored(server, run, "m399")] == [1, 2, 3, 4, 5]
    assert len(runs[0].data.params) == 250 and len(runs[0].data.metrics) == 401
    assert len(runs[0].inputs.dataset_inputs) == 1
    assert len(client.list_artifacts(read_sent(run, "mlflow")["run_id"], "images")) == 2


def test_a_slow_server_holds_up_no_step_and_gets_everything(server, run, monkeypatch):
    done = threading.Event()
    with Proxy(server.port, until=done) as proxy:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
        tracker = RunTracker(run, sinks=[MlflowSink()], experiment="slow", resumed_at=0)
        for step in range(200):
            tracker.log({"train/loss": step}, step)
        assert read_sent(run, "mlflow")["run_id"] is None  # the server has not said its first word
        done.set()
        assert tracker.close()
    assert stored(server, run) == [(step, float(step)) for step in range(200)]


def test_a_server_that_is_killed_and_restarted_gets_all_points_in_order(server, run, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    tracker = RunTracker(run, sinks=[MlflowSink()], experiment="restarted", resumed_at=0)
    tracker.log({"train/loss": 0}, 0)
    until = time.monotonic() + 200
    while not read_sent(run, "mlflow")["metrics_until"]:
        assert time.monotonic() < until
        time.sleep(0.05)
    server.kill()
    for step in range(1, 10):
        tracker.log({"train/loss": step}, step)
    said = ""
    while "MLflow does not accept" not in said:
        assert time.monotonic() < until
        time.sleep(0.05)
        said += capsys.readouterr().err
    server.start()
    tracker.log({"train/loss": 10}, 10)
    assert tracker.close()
    assert stored(server, run) == [(step, float(step)) for step in range(11)]
    assert [line["step"] for line in read_metrics(run)] == list(range(11))
    said += capsys.readouterr().err
    assert said.count("MLflow does not accept the metrics of") == 1 and said.count("MLflow answers again") == 1
