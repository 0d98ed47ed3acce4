import json

import pytest
from support.pages import read_page

from launcher.errors import RunError
from launcher.studies import trajectory


@pytest.fixture
def run(in_tmp, tiny_yaml):
    from launcher.config.file import load_config, to_yaml

    folder = in_tmp / "runs/teacher"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(load_config(tiny_yaml("classify"))))
    (folder / "run.json").write_text("{}")
    lines = [
        {"step": 200, "train/cls_loss": 0.5, "train/seg_loss": 3.0},
        {"step": 300, "train/cls_loss": 0.4},
        {"step": 2000, "train/cls_loss": 0.1, "val/seg/miou": 0.015},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_the_run_stands_beside_the_published_figure_of_the_same_step(run):
    found = trajectory.compare_with_log(run, "voc")
    assert found["train/cls_loss"][0] == (200, 0.436, 0.5)
    assert found["train/cls_loss"][1] == (400, 0.241, None)  # the run has logged no step 400
    assert found["val/seg/miou"][0] == (2000, 0.4, pytest.approx(1.5))
    text = trajectory.format_trajectory(run, "voc")
    assert "0.436    0.500" in text and "val/seg/miou" in text and " 300 " not in text


def test_the_page_holds_a_plot_of_every_metric(run):
    path = trajectory.write_trajectory(run, "coco")
    page, plots = path.read_text(), read_page(path).all("svg")
    assert len(plots) == len(trajectory.PERCENT) + len(trajectory.LOSSES)
    assert "COCO 2014" in page


def test_every_published_line_has_all_its_columns():
    for name in ("voc", "coco"):
        logs = trajectory.read_log(name)
        assert all(len(values) == 3 for values in logs["miou"].values())
        assert all(len(values) == 5 for values in logs["losses"].values())
        assert list(logs["miou"]) == sorted(logs["miou"])


def test_a_run_without_a_log_is_told(run):
    (run / "metrics.jsonl").unlink()
    with pytest.raises(RunError, match="nothing is logged"):
        trajectory.compare_with_log(run, "voc")
