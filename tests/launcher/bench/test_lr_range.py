import json
from pathlib import Path

import pytest

from launcher.bench.crf import crf_ratio
from launcher.bench.lr_range import lr_range, steepest


def test_the_rate_grows_exponentially_and_the_loss_is_smoothed_without_a_bias(in_tmp, tiny_config):
    found = lr_range(tiny_config("classify"), low=1e-6, high=1e-2, steps=5)
    assert found["lr"] == pytest.approx([1e-6, 1e-5, 1e-4, 1e-3, 1e-2])
    first, second = found["loss"][:2]
    assert found["smoothed"][:2] == pytest.approx([first, (0.9 * first + second) / 1.9])
    run = Path("runs/teacher")
    assert json.loads((run / "lr_range.json").read_text()) == found and "<svg" in (run / "lr_range.svg").read_text()
    assert not list(run.glob("step_*"))


def test_it_ends_where_the_loss_explodes(in_tmp, tiny_config):
    found = lr_range(tiny_config("classify"), low=1e-3, high=1e6, steps=40)
    assert len(found["lr"]) < 40 and max(found["smoothed"]) <= 4 * min(found["smoothed"])


def test_the_suggested_rate_is_where_the_loss_falls_fastest_per_decade():
    assert steepest([1e-4, 1e-3, 1e-2, 1e-1], [1.0, 0.9, 0.5, 0.6]) == 1e-2
    assert steepest([1e-4, 1e-3], [1.0, 1.1]) is None
    assert steepest([1e-4], [1.0]) is None


def test_a_crf_of_the_proposed_classes_is_faster_and_names_the_same_pixels():
    found = crf_ratio(classes=41, height=96, width=128, images=2)
    assert found["classes"] == 41 and found["proposed"] <= 6
    assert found["ratio"] == pytest.approx(found["all_s"] / found["proposed_s"])
    assert found["ratio"] > 1.3 and found["agreement"] > 0.999
    assert 0 < found["moved"] < found["left_out"] + 0.01
