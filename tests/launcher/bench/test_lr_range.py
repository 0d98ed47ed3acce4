import json
from pathlib import Path

import numpy as np
import pytest

from launcher.bench.crf import crf_ratio
from launcher.bench.lr_range import lr_range, suggest


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


RATES = [10 ** (-7 + 0.1 * n) for n in range(61)]


def smooth(losses):
    total = weight = 0.0
    means = []
    for loss in losses:
        total, weight = 0.9 * total + loss, 0.9 * weight + 1
        means.append(total / weight)
    return means


def losses_of(valley, *, rises=True, noise=0.02):
    """Falls from 0.7 to 0.4 over the two decades below the valley, and rises behind it; every batch has its noise."""
    random = np.random.default_rng(0)
    found = []
    for rate in RATES:
        below = min(max(np.log10(rate / valley) + 2, 0), 2) / 2
        above = max(np.log10(rate / valley), 0) if rises else 0
        found.append(0.7 - 0.3 * below + 0.4 * above + noise * random.normal())
    return found


@pytest.mark.parametrize("valley", [1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("noise", [0.0, 0.02, 0.05])
def test_the_suggested_rate_lies_a_decade_below_the_valley(valley, noise):
    losses = losses_of(valley, noise=noise)
    rate, reason = suggest(RATES, losses, smooth(losses))
    assert valley / 15 < rate < valley / 2 and "where the loss was lowest before it rose" in reason


def test_a_late_fall_behind_a_rise_is_no_better_rate():
    losses = losses_of(1e-4)
    losses[-15:] = [0.01] * 15  # one batch learned by heart, as happens at rates that train nothing
    assert suggest(RATES, losses, smooth(losses))[0] < 1e-4


def test_no_rate_is_suggested_that_the_range_does_not_show():
    flat = losses_of(1e9)
    assert suggest(RATES, flat, smooth(flat)) == (None, "the loss never clearly fell; give it more --steps")
    falls = losses_of(1e-3, rises=False)
    rate, reason = suggest(RATES, falls, smooth(falls))
    assert rate is None and "raise --high" in reason
    assert suggest([], [], [])[0] is None and suggest([1e-4], [1.0], [1.0])[0] is None


def test_a_crf_of_the_proposed_classes_names_the_same_pixels():
    found = crf_ratio(classes=41, shown=2, height=96, width=128, images=2)
    assert found["classes"] == 41 and found["proposed"] <= 6
    assert found["ratio"] == pytest.approx(found["all_s"] / found["proposed_s"])
    assert found["agreement"] > 0.999
    assert 0 < found["moved"] < found["left_out"] + 0.01
