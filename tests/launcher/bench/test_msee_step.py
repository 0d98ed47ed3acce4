import pytest
import torch

from launcher.bench import msee_step as bench_step
from wsss.methods.toco import ToCo

SMALL = {"embed_dim": 32, "depth": 4, "num_heads": 2}


def small_comparison():
    return bench_step.compare(timm_name="vit_tiny_patch16_224", image_px=96, images=2, repeats=1, timm_options=SMALL)


def test_the_shipped_step_agrees_with_the_plain_one_and_needs_fewer_operations():
    torch.manual_seed(0)
    found = small_comparison()
    assert found["flops_ratio"] < 0.8
    assert found["time_ratio"] == found["shipped"]["seconds"] / found["plain"]["seconds"]
    assert found["shipped"]["peak_bytes"] > 0
    text = bench_step.as_text({**found, "vit_base_448": {"flops_per_image": 2.2e12}})
    assert f"{found['flops_ratio']:.3f}" in text and "2200 GFLOP" in text


def test_a_step_that_computes_something_else_is_told(monkeypatch):
    torch.manual_seed(0)
    right = ToCo.patch_contrast_loss
    monkeypatch.setattr(ToCo, "patch_contrast_loss", lambda self, seen: 1.01 * right(self, seen))
    with pytest.raises(RuntimeError, match="ptc_loss: plain"):
        small_comparison()


def test_equal_losses_with_other_gradients_are_told():
    value = {"loss": torch.ones(())}
    gradient = {"head": torch.ones(3)}
    bench_step.check_equal(value, gradient, value, {"head": torch.ones(3)})
    with pytest.raises(RuntimeError, match="gradient of head"):
        bench_step.check_equal(value, gradient, value, {"head": torch.tensor([1.0, 1.0, 1.1])})
    with pytest.raises(RuntimeError, match="other parts"):
        bench_step.check_equal(value, gradient, value, {})


def test_the_full_step_is_counted_without_being_computed():
    counted = bench_step.counted_on_meta("vit_base_patch16_224", 448)
    # the parts added up by hand: 2184 GFLOP per image (D-45)
    assert counted["flops_per_image"] / 1e9 == pytest.approx(2184, rel=0.01)
