import pytest
import torch

from launcher.processes.accelerator import make_accelerator
from launcher.processes.precision import in_precision


@pytest.mark.parametrize(
    ("precision", "products", "convolutions", "autocast"),
    [("ieee", "highest", False, False), ("tf32", "high", True, False), ("bf16", "highest", False, True)],
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


def test_one_process_may_do_runs_of_several_precisions_one_after_the_other(in_tmp, tiny_config):
    for precision in ("bf16", "ieee", "bf16"):
        accelerator = make_accelerator(tiny_config("classify", f"train.precision={precision}"), processes=1)
        assert accelerator.mixed_precision == {"ieee": "no"}.get(precision, precision)
