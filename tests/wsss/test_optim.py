import numpy as np
import pytest
from support.networks import tiny_cnn, tiny_frozen, tiny_vit
from torch import nn

from wsss.methods.frozen import FrozenFeatures
from wsss.optim import is_of_head, lr_at, parameter_groups


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
    assert lr_at(0, lr=1.0, steps=10, warmup_steps=4) == pytest.approx(1e-6)
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


def test_each_layer_learns_slower_than_the_next_and_new_ones_at_their_own_rate():
    """Three layers: the embedding, block 0, block 1 with the final norm; a CNN by its stages."""
    vit = tiny_vit()
    groups = parameter_groups(vit, 0.01, new_lr_factor=10, layer_decay=0.5)
    factor_of = {id(p): group["lr_factor"] for group in groups for p in group["params"]}
    by_name = {name: factor_of[id(p)] for name, p in vit.named_parameters()}
    wanted = {"pos_embed": 0.25, "cls_token": 0.25, "patch_embed.proj.weight": 0.25, "blocks.0.norm1.weight": 0.5}
    wanted |= {"blocks.1.mlp.fc2.bias": 1.0, "norm.weight": 1.0}
    assert {name: by_name[f"backbone.{name}"] for name in wanted} == wanted and by_name["head.weight"] == 10
    cnn = [group["lr_factor"] for group in parameter_groups(tiny_cnn(), 0.01, layer_decay=0.5)]
    assert cnn == sorted(cnn) and len(set(cnn)) > 3 and max(cnn) == 1


def test_the_classifier_of_frozen_features_learns_at_a_rate_of_its_own():
    """The decoder's last layer is no classifier of images, and timm's blocks in it no backbone."""
    method = FrozenFeatures(tiny_frozen(), attended=1)
    groups = parameter_groups(method, 0.01, new_lr_factor=2, head_lr_factor=10)
    factor_of = {id(p): group["lr_factor"] for group in groups for p in group["params"]}
    by_name = {name: factor_of[id(p)] for name, p in method.named_parameters() if p.requires_grad}
    assert "student.seg_head.weight" in by_name
    assert by_name == {name: 10 if name == "student.head.weight" else 2 for name in by_name}
    assert is_of_head("student.head.weight") and not is_of_head("student.backbone.head.weight")
    assert {group["lr_factor"] for group in parameter_groups(method, 0.01, new_lr_factor=2)} == {2}
    with pytest.raises(ValueError, match="head_lr_factor has no effect: this method trains no classifier"):
        parameter_groups(nn.Linear(2, 2), 0.01, head_lr_factor=10)


def test_a_rate_of_layers_that_are_not_trained_is_told():
    with pytest.raises(ValueError, match="this method trains no layer of a backbone; set it to 1"):
        parameter_groups(FrozenFeatures(tiny_frozen(), attended=1), 0.01, layer_decay=0.9)
    with pytest.raises(ValueError, match="is the classifier, whose rate train.head_lr_factor sets"):
        parameter_groups(tiny_cnn(), 0.01, new_lr_factor=2, head_lr_factor=10)
    with pytest.raises(ValueError, match="new_lr_factor has no effect: the only new layer that is trained, if any"):
        parameter_groups(nn.ModuleDict({"backbone": nn.Linear(2, 2)}), 0.01, new_lr_factor=2)
    assert parameter_groups(tiny_cnn(), 0.01, new_lr_factor=2)


def test_layers_of_what_is_no_backbone_are_told():
    for part in (nn.Linear(2, 2), {"backbone": nn.Linear(2, 2)}, {"other": tiny_vit().backbone}):
        module = nn.ModuleDict(part) if isinstance(part, dict) else part
        with pytest.raises(ValueError, match="layer_decay has no effect: this method has no timm backbone"):
            parameter_groups(module, 0.01, layer_decay=0.9)
