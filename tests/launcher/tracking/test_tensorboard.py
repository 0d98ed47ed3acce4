"""TensorBoard is a second sink: what a run shows there is what its folder holds, whatever happened on the way."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import yaml
from PIL import Image

from launcher.config.file import load_config
from launcher.config.sections import TrackingConfig
from launcher.errors import ConfigError
from launcher.evaluation import evaluate, report
from launcher.evaluation.track import track
from launcher.files import RUNS
from launcher.tracking.delivery import Delivery
from launcher.tracking.mlflow_sink import MlflowSink
from launcher.tracking.sinks import SINKS
from launcher.tracking.sync import sync
from launcher.tracking.tensorboard_sink import TensorboardSink
from launcher.tracking.tracker import RunTracker, read_metrics
from launcher.tracking.unsent import count_unsent, read_sent
from launcher.training.preflight import preflight
from launcher.training.run import train
from launcher.training.trainer import Trainer
from wsss import extras


def tracked(folder, **options):
    return RunTracker(folder, sinks=[TensorboardSink()], experiment="tensorboard", **{"resumed_at": 0, **options})


def read_events(folder):
    """What TensorBoard shows of a run: {tag: [(step, value or bytes of a picture)]}."""
    from tensorboard.backend.event_processing.event_accumulator import IMAGES, SCALARS, EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={SCALARS: 0, IMAGES: 0}).Reload()
    scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    images = {tag: [(e.step, e.encoded_image_string) for e in events.Images(tag)] for tag in events.Tags()["images"]}
    return scalars | images


def read_folder(folder):
    """The same of what the run's folder holds."""
    found = {}
    for line in read_metrics(folder):
        for name in line.keys() - {"time", "step"}:
            found.setdefault(name, []).append((line["step"], pytest.approx(line[name], nan_ok=True)))
    for line in map(json.loads, (folder / "tracking/files.jsonl").read_text().splitlines()):
        if line["step"] is not None:
            found.setdefault(line["name"], []).append((line["step"], (folder / line["file"]).read_bytes()))
    return found


def test_a_run_shows_its_figures_and_pictures_and_needs_no_mlflow(in_tmp, tiny_config, monkeypatch):
    monkeypatch.setattr(MlflowSink, "connect", lambda *_: pytest.fail("MLflow was asked"))
    train(tiny_config("classify", "tracking.to=[tensorboard]"))
    shown = read_events(RUNS / "teacher")
    assert shown == read_folder(RUNS / "teacher")
    assert [step for step, _ in shown["train/loss"]] == [2, 4] and [step for step, _ in shown["gallery"]] == [0, 4]
    assert not any(count_unsent(RUNS / "teacher", "tensorboard"))


@pytest.mark.parametrize("dies_in", ["train_step", "record_figures"])  # in step 6; when step 4 was judged
def test_a_run_that_was_killed_and_resumed_shows_each_step_once(in_tmp, tiny_config, monkeypatch, dies_in):
    settings = ("train.steps=8", "train.log_every=1", "train.save_every=4", "train.eval_every=2")
    config = tiny_config("classify", *settings, "tracking.to=[tensorboard]")
    plain, at = getattr(Trainer, dies_in), {"train_step": 6, "record_figures": 4}[dies_in]

    def die(self, *arguments):
        if self.step == at:
            monkeypatch.setattr(Trainer, dies_in, plain)
            raise KeyboardInterrupt
        plain(self, *arguments)

    monkeypatch.setattr(Trainer, dies_in, die)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    before = read_events(RUNS / "teacher")
    assert [step for step, _ in before["train/loss"]] == [*range(1, at + 1)]
    assert [step for step, _ in before["gallery"]] == [*range(0, at + 1, 2)]
    train(config)
    after = read_events(RUNS / "teacher")
    assert [step for step, _ in after["train/loss"]] == [*range(1, 9)]
    assert [step for step, _ in after["gallery"]] == [0, 2, 4, 6, 8]
    assert [step for step, _ in after["val/average_precision"]] == [2, 4, 6, 8]
    assert after == read_folder(RUNS / "teacher")


def test_what_a_killed_process_sent_and_did_not_note_is_shown_once(folder):
    first = tracked(folder)
    for step in (1, 2, 3):
        first.log({"train/loss": step}, step)
        first.image("gallery", Image.new("RGB", (4, 4), (step, 0, 0)), step)
    assert first.close()
    path = folder / "tracking/tensorboard/sent.json"
    times = [line["time"] for line in read_metrics(folder)]
    path.write_text(json.dumps({**json.loads(path.read_text()), "metrics_until": times[1]}))
    assert sync(folder)
    assert read_events(folder) == read_folder(folder)
    second = tracked(folder, resumed_at=2)  # and without its checkpoint of step 3 it goes back again
    second.log({"train/loss": 30}, 3)
    assert second.close()
    shown = read_events(folder)
    assert shown == read_folder(folder)
    assert shown["train/loss"] == [(1, 1), (2, 2), (3, 30)] and [step for step, _ in shown["gallery"]] == [1, 2]


def test_event_files_that_somebody_removed_are_written_anew(folder):
    first = tracked(folder)
    for step in (1, 2):
        first.log({"train/loss": step}, step)
    assert first.close()
    for path in (folder / "tensorboard").iterdir():
        path.unlink()
    second = tracked(folder, resumed_at=2)
    second.log({"train/loss": 3}, 3)
    assert second.close()
    assert read_events(folder)["train/loss"] == [(1, 1), (2, 2), (3, 3)]


def test_a_line_that_comes_between_waits_for_the_next_time(folder, monkeypatch):
    tracker = tracked(folder, send=False)
    delivery = Delivery(folder, TensorboardSink())
    plain = delivery.rewind
    monkeypatch.setattr(delivery, "rewind", lambda: (plain(), tracker.log({"train/loss": 1}, 1))[0])
    delivery.send()
    monkeypatch.setattr(delivery, "rewind", plain)
    delivery.send()
    assert read_events(folder) == {"train/loss": [(1, 1)]}


class Broken:
    """A sink that takes nothing."""

    name, title, package, rewinds = "broken", "Broken", "os", False

    def load(self):
        raise ImportError("no module named broken")

    def connect(self, run, wanted, run_id):
        raise OSError("nobody there")


def test_a_sink_that_fails_ends_no_run_and_the_others_get_everything(folder, monkeypatch, capsys):
    monkeypatch.setattr("launcher.tracking.tracker.CLOSE_S", 100.0)
    monkeypatch.setattr("launcher.tracking.sender.FIRST_PAUSE_S", 300.0)
    monkeypatch.setitem(SINKS, "broken", Broken)
    places = [Broken(), MlflowSink(), TensorboardSink()]
    tracker = RunTracker(folder, sinks=places, experiment="broken", resumed_at=0)
    for step in range(1, 6):
        tracker.log({"train/loss": step}, step)
    for sender in tracker.senders[1:]:
        sender.close()
        sender.join(250)
    monkeypatch.setattr("launcher.tracking.tracker.CLOSE_S", 0.1)
    assert not tracker.close()
    said = capsys.readouterr().err
    assert said.count("Broken does not accept the metrics of") == 1 and "OSError: nobody there" in said
    assert (
        f"Broken lacks 5 lines of metrics and 0 files of {folder}; to send them later: wsss track sync {folder}" in said
    )
    assert read_events(folder) == read_folder(folder)
    assert count_unsent(folder, "mlflow")[:2] == (0, 0)
    assert not sync(folder)
    out = capsys.readouterr().out
    assert "Broken does not accept" in out and f"{folder}: sent 0 points and 0 files to TensorBoard" in out
    assert not any(count_unsent(folder, "mlflow")) and not any(count_unsent(folder, "tensorboard"))


def test_sync_sends_each_sink_what_it_lacks(folder, capsys):
    RunTracker(folder, sinks=[MlflowSink(), TensorboardSink()], experiment="both", resumed_at=0, send=False).log(
        {"train/loss": 1}, 1
    )
    assert sync(folder)
    out = capsys.readouterr().out
    assert f"{folder}: sent 1 points and 0 files to MLflow" in out
    assert f"{folder}: sent 1 points and 0 files to TensorBoard" in out
    assert read_events(folder)["train/loss"] == [(1, 1)]
    assert read_sent(folder, "mlflow")["status"] == read_sent(folder, "tensorboard")["status"] == "KILLED"
    files = sorted((folder / "tensorboard").iterdir())
    assert sync(folder) and sorted((folder / "tensorboard").iterdir()) == files


def test_a_run_may_be_tracked_nowhere(in_tmp, tiny_config):
    train(tiny_config("classify", "tracking.to=[]"))
    assert [line["step"] for line in read_metrics(RUNS / "teacher") if "train/loss" in line] == [2, 4]
    assert sorted(path.name for path in (RUNS / "teacher/tracking").iterdir()) == ["files.jsonl", "wanted.json"]
    assert sync(RUNS / "teacher")


def test_evaluation_and_report_reach_it(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "tracking": {"to": ["tensorboard"]}}))
    (run / evaluate.EVALUATION).write_text("{}")
    figures = {"grad": {"fixed": {"miou": 0.5}, "tuned": None}}
    dataset = {"classes": ["smoke"]}
    about = {"checkpoint": "runs/student/step_0000002", "headline": {"source": "grad", "choice": "fixed"}}
    track(run, {**about, "sources": figures, "dataset": dataset})
    assert read_events(run)["final/grad/fixed/miou"] == [(2, 0.5)]
    (run / "report.html").write_text("<p>")
    assert report.attach(run, run / "report.html", send=True)
    assert not any(count_unsent(run, "tensorboard"))


def test_a_missing_package_is_said_before_anything_trains(in_tmp, tiny_config, monkeypatch):
    found = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "tensorboard" else found(name))
    preflight(tiny_config("classify"))
    wanted = r"tracking.to: 'tensorboard' needs the package 'tensorboard', .*pip install 'wsss\[tensorboard\]'"
    with pytest.raises(ConfigError, match=wanted):
        preflight(tiny_config("classify", "tracking.to=[mlflow, tensorboard]"))
    monkeypatch.setattr(extras, "find_spec", lambda name: SimpleNamespace(origin=None))  # a folder of that name
    with pytest.raises(ConfigError, match="not installed"):
        preflight(tiny_config("classify", "tracking.to=[tensorboard]"))
    assert not Path("runs").exists()


def test_the_config_knows_every_sink_and_each_once(tiny_yaml):
    assert set(get_args(get_args(TrackingConfig.model_fields["to"].annotation)[0])) == set(SINKS)
    assert all(SINKS[name].name == name for name in SINKS)
    for wrong, why in (
        ("[mlflow, mlflow]", "to names 'mlflow' twice; leave one out"),
        ("[tensorbord]", "'mlflow' or 'tensorboard'"),
    ):
        with pytest.raises(ConfigError, match=why):
            load_config(tiny_yaml("classify"), [f"tracking.to={wrong}"])
