"""What MLflow's pages get to show: names, description, links, models; each once."""

import json
import threading

import mlflow
import pytest
from PIL import Image
from safetensors.torch import save_file
from torch import zeros

from launcher.tracking import mlflow_pages as pages
from launcher.tracking.mlflow_sink import MlflowSink
from launcher.tracking.mlflow_store import address_of
from launcher.tracking.sync import sync
from launcher.tracking.tracker import RunTracker
from launcher.tracking.unsent import begin_wanted, change_wanted, count_unsent, read_sent, read_wanted

HEADLINES = {"val/cam/miou": "val/miou", "val/f1": "val/f1"}
ABOUT = {"what": "classify with a tiny network", "again": "wsss train x.yaml", "commit": "abc"}


@pytest.fixture
def run(in_tmp):
    folder = in_tmp / "runs/pages/run"
    folder.mkdir(parents=True)
    return folder


def tracked(run, **options):
    return RunTracker(run, sinks=[MlflowSink()], experiment="pages", headlines=HEADLINES, about=ABOUT, **options)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("train/loss", "train/loss"),
        ("train/lr", "train/lr"),
        ("train/images_per_s", "system/images_per_second"),
        ("val/seconds", "system/validation_seconds"),
        ("system/step_seconds", "system/step_seconds"),
        ("val/cam/miou", "val/miou"),
        ("val/aux_cam/miou", "val/aux_cam/miou"),
        ("summary/miou", "miou"),
        ("final/cam/tuned/miou", None),
    ],
)
def test_headlines_come_first_machines_have_a_page_and_the_final_table_is_a_file(ours, theirs):
    assert pages.name_in_mlflow(ours, HEADLINES) == theirs


def test_a_run_shows_what_it_is_and_a_second_delivery_changes_nothing(run, capsys):
    tracker = tracked(run, resumed_at=0)
    for step, miou in ((1, 0.25), (2, 0.5), (3, 0.375)):
        tracker.log({"train/loss": 1 / step, "val/cam/miou": miou, "system/step_seconds": 0.1}, step)
    tracker.log({"summary/miou": 0.5, "final/cam/tuned/miou": 0.5}, 3)
    tracker.image("gallery", Image.new("RGB", (4, 4)), 3)
    save_file({"weight": zeros(2)}, run / "student.safetensors")
    tracker.model(run / "student.safetensors", "pages_student", "best")
    (run / "evaluation.json").write_text("{}")
    tracker.artifact(run / "evaluation.json")
    tracker.tell(evaluation="mIoU 50.0 %")
    assert tracker.close()
    client, run_id = mlflow.MlflowClient(), read_sent(run, "mlflow")["run_id"]
    experiment = client.get_experiment_by_name("pages")

    def shown():
        stored = client.get_run(run_id)
        models = client.search_logged_models([experiment.experiment_id])
        versions = client.search_model_versions("name = 'pages_student'")
        return (
            dict(stored.data.metrics),
            stored.data.tags["mlflow.note.content"],
            [(model.source_run_id, model.status) for model in models],
            [output.model_id for output in stored.outputs.model_outputs] == [model.model_id for model in models],
            [(version.version, version.run_id) for version in versions],
            client.get_model_version_by_alias("pages_student", "best").version,
            [file.path for file in client.list_artifacts(run_id, "gallery")],
        )

    metrics, note, *others = shown()
    assert metrics == {"train/loss": 1 / 3, "val/miou": 0.375, "system/step_seconds": 0.1, "miou": 0.5}
    assert others == [[(run_id, "READY")], True, [(1, run_id)], 1, ["gallery/step_0000003.png"]]
    for said in ("classify with a tiny network", "mIoU 50.0 %", "`wsss train x.yaml`", "commit: abc"):
        assert said in note
    assert "val/cam/miou 50.0 % at step 2" in note
    assert f"(#/experiments/{experiment.experiment_id}/runs/{run_id}/artifacts/evaluation.json?" in note
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    views = [json.loads(experiment.tags[f"mlflow.sharedViewState.{name}"]) for name in ("wsss", "wsss_rows")]
    assert all("metrics.`miou`" in view["selectedColumns"] for view in views) and "groupBy" not in views[0]
    assert views[1]["groupBy"]["groupByKeys"] == [{"mode": "tag", "groupByData": "wsss.row"}]
    link = f"#/experiments/{experiment.experiment_id}/runs/{run_id}?workflowType=machine_learning"
    assert link in capsys.readouterr().err
    once = shown()
    (run / "tracking/mlflow/sent.json").unlink()  # all is sent again by somebody who forgot that it was
    assert sync(run) and shown() == once
    change_wanted(run, about={**read_wanted(run)["about"], "evaluation": "mIoU 60.0 %"})
    assert count_unsent(run, "mlflow") == (0, 0, True)
    assert sync(run) and "mIoU 60.0 %" in shown()[1]


def test_the_best_figure_is_one_of_the_steps_that_a_resumed_run_keeps(run):
    first = tracked(run, resumed_at=0, send=False)
    for step, miou in ((1, 0.25), (2, 0.5)):
        first.log({"val/cam/miou": miou}, step)
    assert read_wanted(run)["about"]["best"] == "val/cam/miou 50.0 % at step 2"
    tracked(run, resumed_at=1, send=False)
    assert read_wanted(run)["about"]["best"] == "val/cam/miou 25.0 % at step 1"
    tracked(run, resumed_at=0, send=False)
    assert read_wanted(run)["about"]["best"] is None


def test_pages_that_may_not_be_set_up_cost_a_line_and_what_is_set_stays(run, monkeypatch, capsys):
    client = mlflow.MlflowClient()
    mine = client.create_experiment("set up", tags={"mlflow.experimentKind": "finetuning"})
    tracker = RunTracker(run, sinks=[MlflowSink()], experiment="set up")
    assert tracker.close()
    assert client.get_experiment(mine).tags["mlflow.experimentKind"] == "finetuning"

    def refuse(*_):
        raise PermissionError("not yours")

    monkeypatch.setattr(mlflow.MlflowClient, "set_experiment_tag", refuse)
    other = run.with_name("other")
    other.mkdir()
    tracker = RunTracker(other, sinks=[MlflowSink()], experiment="not set up")
    tracker.log({"train/loss": 1.0}, 1)
    assert tracker.close()
    assert "does not let this run set up the pages of its experiment: not yours" in capsys.readouterr().err


def test_a_link_names_no_password():
    assert address_of("https://me:secret@host:5/base/", "#/x") == "https://host:5/base/#/x"
    assert address_of("mysql://me:secret@host/db", "#/x") == (
        "http://127.0.0.1:5000/#/x while `mlflow ui --backend-store-uri mysql://host/db` runs"
    )
    assert "--backend-store-uri sqlite:////a/mlflow.db`" in address_of("sqlite:////a/mlflow.db", "#/x")


def test_two_that_change_what_is_wanted_lose_nothing_of_each_other(run):
    (run / "tracking").mkdir()
    begin_wanted(run, "pages", {}, {}, {})

    def change(name):
        for number in range(40):
            change_wanted(run, **{f"{name}{number}": number})

    threads = [threading.Thread(target=change, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {f"{name}{number}" for name in "ab" for number in range(40)} <= read_wanted(run).keys()
