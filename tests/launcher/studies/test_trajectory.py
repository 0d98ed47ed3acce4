import json

import pytest
from support.pages import read_page

from launcher.errors import RunError
from launcher.evaluation.plots import plot_lines
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
    first = {name: points[0][1] for name, points in found.items()}  # the columns of the log
    assert first == {
        **{"val/cam/miou": 24.2, "val/aux_cam/miou": 51.5, "val/seg/miou": 0.4, "train/cls_loss": 0.436},
        **{"train/cls_aux_loss": 6.239, "train/ptc_loss": 0.4, "train/ctc_loss": 1.559, "train/seg_loss": 2.93},
    }
    text = trajectory.format_trajectory(run, "voc")
    assert "0.436    0.500" in text and "val/seg/miou" in text and " 300 " not in text


def test_the_page_holds_a_plot_of_every_metric(run, monkeypatch):
    drawn = {}

    def plot(title, x_label, lines, **options):
        drawn[title] = (lines["teacher"].x, lines["teacher"].y, lines["ToCo"].y[0], options["log_y"])
        return plot_lines(title, x_label, lines, **options)

    monkeypatch.setattr(trajectory, "plot_lines", plot)
    path = trajectory.write_trajectory(run, "coco")
    logs = trajectory.read_log("coco")
    assert drawn["train/cls_loss"] == ([200, 300, 2000], [0.5, 0.4, 0.1], logs["losses"][200][0], True)
    assert drawn["val/seg/miou"] == ([2000], [pytest.approx(1.5)], next(iter(logs["miou"].values()))[2], False)
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
