"""A run that ended says why, later too; nothing of that can end a run."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.places import environment

from launcher.__main__ import main
from launcher.errors import RunError
from launcher.files import RUNS
from launcher.processes.signals import Stopped
from launcher.run.failure import FAILURE, NotingFailure, read_failure
from launcher.run.lock import find_holder, only_writer
from launcher.run.log import LOG, keep_log
from launcher.run.status import Status, format_statuses, read_progress, read_status, read_statuses
from launcher.tracking.delivery import read_wanted
from launcher.tracking.tracker import read_metrics
from launcher.training.run import train
from launcher.training.trainer import Trainer

TEACHER = RUNS / "teacher"


def break_at(step, error, monkeypatch):
    """The step after this one raises."""
    whole = Trainer.train_step

    def train_step(self, batches):
        if self.step == step:
            raise error
        whole(self, batches)

    monkeypatch.setattr(Trainer, "train_step", train_step)


def test_a_run_that_failed_says_when_where_why_and_what_to_do(in_tmp, tiny_config, monkeypatch):
    break_at(3, RuntimeError("the device went away\nfor good"), monkeypatch)
    with pytest.raises(RuntimeError, match="went away"):
        train(tiny_config("classify"))
    said = read_failure(TEACHER)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", said.pop("time"))
    assert said == {
        "step": 3,
        "rank": 0,
        "kind": "RuntimeError",
        "message": "the device went away\nfor good",
        "next": "wsss train runs/teacher/config.yaml",
    }
    (status,) = read_statuses(RUNS)
    assert (status.state, status.step, status.steps, status.left_s) == ("failed", 3, 4, None)
    losses = [line["train/loss"] for line in read_metrics(TEACHER) if "train/loss" in line]
    assert len(losses) == 1 and status.loss == losses[0]
    assert status.reason.startswith("RuntimeError after step 3 on rank 0: the device went away")
    assert "Traceback" in (TEACHER / LOG).read_text() and "the device went away" in (TEACHER / LOG).read_text()
    assert read_wanted(TEACHER)["reason"] == "RuntimeError: the device went away\nfor good"
    monkeypatch.undo()


def test_a_run_that_goes_on_forgets_why_it_failed(in_tmp, tiny_config, monkeypatch, mlflow_store):
    import mlflow

    with monkeypatch.context() as patch:
        break_at(2, RunError("no room"), patch)
        with pytest.raises(RunError):
            train(tiny_config("classify"))
    run_id = json.loads((TEACHER / "tracking/mlflow/sent.json").read_text())["run_id"]
    client = mlflow.MlflowClient(mlflow_store)
    assert client.get_run(run_id).data.tags["wsss.failure"] == "RunError: no room"
    train(tiny_config("classify"))
    assert not (TEACHER / FAILURE).exists() and read_status(TEACHER) == Status(
        TEACHER, "finished", 4, 4, read_status(TEACHER).loss
    )
    assert client.get_run(run_id).data.tags["wsss.failure"] == ""
    assert client.get_run(run_id).info.status == "FINISHED"


def test_a_loss_that_is_not_finite_advises_the_replay(in_tmp, tiny_config):
    with pytest.raises(RunError):
        train(tiny_config("classify", "train.lr=1e38", "train.max_grad_norm=null"))
    said = read_failure(TEACHER)
    assert said["kind"] == "NotFinite" and said["next"] == f"wsss replay runs/teacher --step {said['step'] + 1}"


def test_a_failure_before_there_is_a_config_is_listed_too(in_tmp, tiny_config, monkeypatch):
    monkeypatch.setattr("launcher.training.run.build_method_and_optimizer", lambda *_: torch.empty(-1))
    with pytest.raises(RuntimeError):
        train(tiny_config("classify"))
    (status,) = read_statuses(RUNS)
    assert (status.state, status.step, status.steps) == (
        "failed",
        None,
        None,
    ) and "RuntimeError on rank 0" in status.reason


def test_a_run_that_was_asked_to_stop_did_not_fail(in_tmp, tiny_config, monkeypatch):
    whole = Trainer.train_step
    monkeypatch.setattr(
        Trainer, "train_step", lambda self, batches: (whole(self, batches), os.kill(os.getpid(), signal.SIGTERM))
    )
    with pytest.raises(Stopped):
        train(tiny_config("classify"))
    status = read_status(TEACHER)
    assert (status.state, status.step) == ("stopped", 1)
    assert status.reason.endswith("wsss train runs/teacher/config.yaml")


HOLD = """
import sys, time
from pathlib import Path
from launcher.run.lock import only_writer
with only_writer(Path("runs/teacher")):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_that_goes_on_and_one_that_was_killed_are_told_apart_by_the_lock(in_tmp, tiny_config, monkeypatch):
    with monkeypatch.context() as patch:
        break_at(3, KeyboardInterrupt(), patch)  # leaves what kill -9 leaves, but for the state in wanted.json
        with pytest.raises(KeyboardInterrupt):
            train(tiny_config("classify", "train.log_every=1"))
    wanted = read_wanted(TEACHER)
    (TEACHER / "tracking/wanted.json").write_text(json.dumps({**wanted, "status": "RUNNING"}))
    assert not (TEACHER / FAILURE).exists()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD], env=environment({}), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    status = read_status(TEACHER)
    assert status.state == "running" and f"process {holder.pid} on " in status.reason
    assert status.step == 3 and status.left_s == pytest.approx(read_progress(TEACHER)[2])  # one step of four
    holder.kill()
    holder.wait()
    status = read_status(TEACHER)
    assert status.state == "killed" and status.left_s is None
    assert status.reason.endswith("next: wsss train runs/teacher/config.yaml")


def test_a_second_training_does_not_write_into_the_run_that_goes_on(in_tmp, tiny_config, monkeypatch):
    TEACHER.mkdir(parents=True)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD], env=environment({}), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    monkeypatch.setattr("launcher.training.run.only_writer", lambda run: only_writer(run, wait_s=0.0))
    with pytest.raises(RunError, match="is being trained by process"):
        train(tiny_config("classify"))
    assert sorted(path.name for path in TEACHER.iterdir()) == [".lock"]
    holder.communicate("")
    assert find_holder(TEACHER) is None and find_holder(RUNS) is None


def test_the_first_process_that_fails_is_the_one_that_is_heard(tmp_path):
    for rank, error in ((1, RunError("the disk is full")), (0, RuntimeError("connection closed by peer"))):
        with pytest.raises(RuntimeError), NotingFailure(tmp_path, rank) if rank else Late(tmp_path, rank):
            raise error
    assert read_failure(tmp_path)["rank"] == 1


class Late(NotingFailure):
    """A first process that has begun before the other failed."""

    def __enter__(self):
        return self


@pytest.mark.parametrize("place", ["gone", "file"])
def test_what_cannot_be_noted_ends_nothing(tmp_path, place, capsys):
    run = tmp_path / place
    if place == "file":
        run.write_text("no folder")
    with pytest.raises(RunError, match="the reason"), keep_log(run), NotingFailure(run, 0):
        raise RunError("the reason")
    assert "cannot be written" in capsys.readouterr().err and read_failure(run) is None


def test_a_full_disk_under_the_log_loses_lines_alone(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    with keep_log(tmp_path):
        print("first")
        monkeypatch.setattr(os, "write", full)
        print("second")
        monkeypatch.undo()
        print("third")
    assert capsys.readouterr().out == "first\nsecond\nthird\n"
    assert [line.split(" ", 1)[1] for line in (tmp_path / LOG).read_text().splitlines()[1:]] == ["first", "third"]


def test_the_log_has_lines_with_their_time_and_no_states_of_a_bar(tmp_path, capsys):
    with keep_log(tmp_path):
        for done in range(3):
            print(f"\rtrain: {done}/2", end="", file=sys.stderr)
        print(file=sys.stderr)
        print("\r      \rtracking: a word\n\nnext\r\n", end="", file=sys.stderr)
    head, *lines = (tmp_path / LOG).read_text().splitlines()
    assert head.partition(" ")[2].startswith("--- ")
    assert [line.partition(" ")[2] for line in lines] == ["train: 2/2", "tracking: a word", "next"]
    assert "\rtrain: 1/2" in capsys.readouterr().err
    print("not of the run")
    assert "not of the run" not in (tmp_path / LOG).read_text()


@pytest.mark.parametrize(
    ("name", "content"), [("config.yaml", "train: ["), ("config.yaml", "[]"), ("metrics.jsonl", "x\n")]
)
def test_a_damaged_run_hides_no_other(run, name, content):
    (RUNS / "teacher" / name).write_text(content)
    student, teacher = read_statuses(RUNS)
    assert (student.state, teacher.state) == ("finished", "unknown")
    assert name in teacher.reason


def test_damaged_notes_are_none(tmp_path):
    for text in ("", "[]", '{"step"'):
        (tmp_path / FAILURE).write_text(text)
        assert read_failure(tmp_path) is None


def test_the_table_has_one_line_per_run():
    table = format_statuses([
        Status(Path("runs/a"), "running", 120, 900, 0.39123, 3725.0, "process 7 on x"),
        Status(Path("runs/longer"), "failed", None, None, None, None, "two\nlines"),
    ])  # fmt: skip
    assert table.splitlines() == [
        "run          state    step     loss    left     reason",
        "runs/a       running  120/900  0.3912  1:02:05  process 7 on x",
        "runs/longer  failed   -        -       -        two lines",
    ]


def test_no_run_is_told(in_tmp):
    with pytest.raises(RunError, match="runs: no run in or below it"):
        read_statuses(RUNS)


def test_processes_that_ended_without_a_word_are_noted_by_their_launcher(run, monkeypatch):
    monkeypatch.setattr("launcher.processes.launch.run_and_forward", lambda argv, env: 137)
    monkeypatch.setattr("launcher.training.preflight.preflight", lambda config: 1)
    monkeypatch.setattr(sys, "argv", ["wsss", "train", str(run / "config.yaml")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 137
    said = read_failure(run)
    assert said["kind"] == "exit" and "ended with code 137" in said["message"] and said["rank"] is None
    assert read_status(run).state == "failed"


def test_the_command_prints_a_table_or_json(run, monkeypatch, capsys):
    for words in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["wsss", "status", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        shown = capsys.readouterr().out
        if words:
            found = [(one["run"], one["state"]) for one in json.loads(shown)]
            assert found == [("runs/student", "finished"), ("runs/teacher", "finished")]
        else:
            assert re.findall(r"^(runs/\w+) +finished  2/2 ", shown, re.M) == ["runs/student", "runs/teacher"]
