"""What a run says of itself, and what it takes of its machine."""

import json

import pytest
import torch

from launcher.config.file import load_config
from launcher.errors import ConfigError, RunError
from launcher.files import RUNS
from launcher.run import steps
from launcher.tracking.protocol import NoTracker
from launcher.tracking.unsent import read_wanted
from launcher.training import begin, gauges
from launcher.training.run import train

TEACHER = RUNS / "teacher"


def test_a_run_names_its_config_its_data_and_its_place_in_a_study(in_tmp, tiny_config):
    said = ["configs/tiny.yaml", "train.seed=3", "name=table/row_seed3"]
    train(tiny_config("classify", "tracking.to=[]", *said[1:]), said)
    wanted = read_wanted(RUNS / "table/row_seed3")
    tags = {name: wanted["tags"][name] for name in ("wsss.study", "wsss.row", "wsss.seed", "wsss.overrides")}
    assert (wanted["experiment"], wanted["name"]) == ("table", "row_seed3")
    assert tags == {
        "wsss.study": "table",
        "wsss.row": "row",
        "wsss.seed": "3",
        "wsss.overrides": "train.seed=3 name=table/row_seed3",
    }
    assert wanted["tags"]["mlflow.source.name"] == "configs/tiny.yaml" and wanted["params"]["train.lr"] == "0.001"
    assert sorted(wanted["datasets"]) == ["train", "tune", "val"]
    assert list(wanted["headlines"].items())[:2] == [
        ("val/class_map/per_image_iou", "val/per_image_iou"),
        ("val/class_map/false_alarm_area", "val/false_alarm_area"),
    ]
    about = wanted["about"]
    assert about["what"].startswith("classify with cnn resnet10t: 4 steps of 8 images of 32 px, seed 3")
    assert about["again"] == f"wsss train {RUNS / 'table/row_seed3/config.yaml'}"
    assert about["best"].startswith("val/class_map/per_image_iou ") and about["best"].endswith(" % at step 4")
    assert about["files"] == ["config.yaml"] and about["pictures"] == {"gallery": 4}
    lines = [json.loads(line) for line in (RUNS / "table/row_seed3/tracking/files.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line.get("name") == "gallery"] == [0, 4]


class Offered(NoTracker):
    def __init__(self):
        self.models = []

    def model(self, path, name, alias):
        self.models.append((path.name, name, alias))


@pytest.mark.parametrize(("best", "alias"), [(None, "newest"), ("val/class_map/per_image_iou", "best")])
def test_a_finished_run_offers_its_student(in_tmp, tiny_config, monkeypatch, capsys, best, alias):
    written, offered = [], Offered()
    monkeypatch.setattr(begin, "export", lambda run, out, checkpoint: written.append((out.name, checkpoint)))
    config = tiny_config(
        "classify", "tracking.model=smoke", "tracking.to=[mlflow]", f"train.keep_best={best or 'null'}"
    )
    for step, iou in ((2, 0.5), (4, 0.25)):
        folder = TEACHER / f"step_{step:07d}"
        folder.mkdir(parents=True)
        steps.write_figures(folder, {"val/class_map/per_image_iou": iou})
    begin.offer_model(config, offered)
    assert offered.models == [("student.safetensors", "smoke", alias)]
    assert written == [("student.safetensors", TEACHER / "step_0000002" if best else None)]

    for error in (RunError("no room"), ConfigError("no map")):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr(begin, "export", fail)
        begin.offer_model(config, offered)
        assert len(offered.models) == 1
        said = f"the student was not exported ({error}); to do it later: wsss export {TEACHER} --out FILE"
        assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("tracking.model=a/b", "takes a name without '/' and ':'"),
        ("tracking.to=[tensorboard]", "only MLflow keeps models"),
    ],
)
def test_a_model_that_no_place_takes_is_refused(tiny_yaml, override, said):
    with pytest.raises(ConfigError, match=said):
        load_config(tiny_yaml("classify"), ["tracking.model=smoke", override])


def test_gauges_count_steps_and_waiting_and_nothing_else(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(gauges.time, "perf_counter", lambda: now[0])
    gauge = gauges.Gauges(torch.device("cpu"))

    def slow():
        while True:
            now[0] += 0.5
            yield {}

    batches = slow()
    for _ in range(4):
        gauge.next_batch(batches)
        now[0] += 1.0
    now[0] += 10.0
    gauge.leave_out(10.0)  # a save
    found = gauge.read(4, images=32)
    assert found["system/step_seconds"] == 1.5 and found["system/data_wait_seconds"] == 0.5
    assert found["train/images_per_s"] == pytest.approx(32 / 6)
    assert found["system/process_memory_megabytes"] > 0 and 0 <= found["system/system_memory_usage_percentage"] <= 100
    assert not any("gpu" in name for name in found)
    now[0] += 50.0
    gauge.leave_out()  # a validation
    now[0] += 2.0
    assert gauge.read(1, images=8)["system/step_seconds"] == 2.0


def test_gauges_of_a_gpu_bear_mlflows_names(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (20_000_000_000, 80_000_000_000))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 50_000_000_000)
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 93)
    gauge = gauges.Gauges(torch.device("cuda", 1))
    names = ("memory_usage_megabytes", "memory_usage_percentage", "memory_peak_megabytes")
    wanted = {f"system/gpu_1_{name}": value for name, value in zip(names, (60_000, 75, 50_000), strict=True)}
    assert gauge.read_gpu() == {**wanted, "system/gpu_1_utilization_percentage": 93}

    def missing(device):
        raise ModuleNotFoundError("pynvml")

    monkeypatch.setattr(torch.cuda, "utilization", missing)
    assert gauge.read_gpu() == wanted
