"""The last words of a training, and the first."""

import pytest

from launcher.files import RUNS
from launcher.processes.launch import describe_launch
from launcher.progress import LINE_WORDS
from launcher.run import steps
from launcher.run.folder import Run
from launcher.training.ending import describe_end, name_next


def test_the_end_says_what_was_written_the_headline_beside_the_teachers_and_what_to_type(run):
    config, teacher = Run(run).config, Run(RUNS / "teacher")
    figures = {"val/grad/per_image_iou": 0.25, "val/class_map/per_image_iou": 0.9, "val/average_precision": 0.5}
    steps.write_figures(run / "step_0000002", figures)
    steps.write_figures(RUNS / "teacher/step_0000002", {"val/class_map/per_image_iou": 0.125})
    done, headline, following = describe_end(config, 65.0, teacher).splitlines()
    assert done.startswith("done in 01:05: runs/student/step_0000002; metrics in metrics.jsonl")
    assert headline == "grad per-image IoU 25.0 % at the fixed threshold; its teacher class_map per-image IoU 12.5 %"
    assert following == "next: wsss infer runs/student" and len(headline) <= LINE_WORDS
    elsewhere = config.model_copy(update={"data": config.data.model_copy(update={"val": "other"})})
    assert "its teacher" not in describe_end(config, 65.0, None)
    assert "its teacher" not in describe_end(elsewhere, 65.0, teacher)  # it was judged on other images
    steps.write_figures(run / "step_0000002", {"val/average_precision": 0.5})
    assert describe_end(config, 65.0, None).splitlines()[1] == "average precision 50.0 %"  # of labels: no threshold
    steps.write_figures(run / "step_0000002", {"val/grad/per_image_iou": None})
    assert len(describe_end(config, 65.0, teacher).splitlines()) == 2


@pytest.mark.parametrize(
    ("method", "data", "command"),
    [
        ("toco", {}, "wsss segment runs/student"),
        ("supervised", {}, "wsss segment runs/student"),
        ("supervised", {"val": None, "tune": "data/tune"}, "wsss segment runs/student --split tune"),
        ("toco", {"val": None, "tune": None}, "wsss segment runs/student --split train"),
        ("affinity", {"val": "data/val"}, "wsss cues walk data/val --run runs/student"),
        ("classify", {"val": None, "tune": None}, "wsss infer runs/student --split train"),
        ("classify", {"val": None}, "wsss infer runs/student"),
    ],
)
def test_the_next_command_fits_the_method_and_the_data(run, method, data, command):
    config = Run(run).config
    named = config.method.model_copy(update={"name": method})
    changed = {"method": named, "data": config.data.model_copy(update=data)}
    if method == "supervised":  # has no other maps
        changed["cam"] = config.cam.model_copy(update={"kinds": ("seg",)})
    assert name_next(config.model_copy(update=changed)) == command


def test_what_is_launched_is_told_in_a_few_words(tiny_config):
    assert describe_launch(tiny_config("classify", "launch.device=cpu")) == "teacher: 1 process on CPU"
    two = tiny_config("classify", "launch.device=cpu", "launch.processes=2")
    assert describe_launch(two) == "teacher: 2 processes on CPUs"
