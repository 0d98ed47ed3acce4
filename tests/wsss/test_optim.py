import numpy as np
import pytest
from torch import nn

from wsss.optim import lr_at, parameter_groups


@pytest.mark.parametrize("case", ["lr_p0", "lr_p1"])
def test_polynomial_schedule_equals_the_golden_vectors(golden, case):
    arrays = golden(case)
    settings = {
        "lr": float(arrays["base_lr"]),
        "steps": int(arrays["max_iter"]),
        "warmup_steps": int(arrays["warmup_iter"]),
        "power": float(arrays["power"]),
        "warmup_ratio": float(arrays["warmup_ratio"]),
    }
    steps = arrays["step"]
    inside = steps < settings["steps"]
    rates = np.array([lr_at(int(step), **settings) for step in steps])
    np.testing.assert_allclose(rates[inside], arrays["lr_x1_f64"][inside], rtol=1e-12)
    np.testing.assert_allclose(rates, arrays["lr_x1_f64"], rtol=1e-12)


def test_power_zero_is_constant_after_the_warm_up():
    assert lr_at(0, lr=1.0, steps=10, warmup_steps=4, warmup_ratio=0.0) == 0.0
    assert lr_at(1, lr=1.0, steps=10, warmup_steps=4, warmup_ratio=0.0) == pytest.approx(0.25)
    assert [lr_at(step, lr=1.0, steps=10) for step in (0, 5, 9, 50)] == [1.0] * 4


def test_norms_biases_and_tokens_do_not_decay():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(2, 3), nn.LayerNorm(3)
            self.pos_embed = nn.Parameter(nn.Linear(4, 4).weight.detach()[None])
            self.frozen = nn.Linear(2, 2).requires_grad_(False)

    net = Net()
    decayed, undecayed = parameter_groups(net, 0.05)
    assert decayed["weight_decay"] == 0.05
    assert [p is net.linear.weight for p in decayed["params"]] == [True]
    assert undecayed["weight_decay"] == 0.0
    assert {id(p) for p in undecayed["params"]} == {
        id(p) for p in (net.linear.bias, net.norm.weight, net.norm.bias, net.pos_embed)
    }
