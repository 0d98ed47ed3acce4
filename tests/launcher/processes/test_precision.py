import pytest
import torch

from launcher.processes.accelerator import make_accelerator
from launcher.processes.precision import half_of, in_precision, name_emulation


@pytest.mark.parametrize(
    ("precision", "products", "convolutions", "autocast"),
    [
        ("ieee", "highest", False, False),
        ("tf32", "high", True, False),
        ("bf16", "highest", False, True),
        ("fp16", "highest", False, True),
    ],
)
def test_each_precision_sets_every_flag_and_puts_it_back(precision, products, convolutions, autocast):
    def flags() -> tuple:
        return (
            torch.get_float32_matmul_precision(),
            torch.backends.cudnn.allow_tf32,
            torch.is_autocast_enabled("cpu"),
        )

    before = flags()
    with in_precision(precision, "cpu"):
        assert flags() == (products, convolutions, autocast)
    assert flags() == before


def test_a_gpu_before_ampere_has_float16_alone_and_one_before_volta_neither():
    t4, v100, a100, p100 = (7, 5), (7, 0), (8, 0), (6, 0)
    assert [half_of(card) for card in (t4, v100, a100, p100)] == ["fp16", "fp16", "bf16", "ieee"]


def test_bfloat16_that_a_gpu_only_emulates_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    gpu = torch.device("cuda", 0)
    assert name_emulation("bf16", gpu).endswith("Tesla T4 only emulates, slowly: train.precision=fp16 is faster")
    assert name_emulation("fp16", gpu) == name_emulation("bf16", torch.device("cpu")) == ""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert name_emulation("bf16", gpu) == ""


def test_the_surroundings_have_no_say_in_the_precision(in_tmp, tiny_config, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert make_accelerator(tiny_config("classify"), processes=1).mixed_precision == "no"
