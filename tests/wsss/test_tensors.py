from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F

from wsss.tensors import as_on_gpu, full_precision, resize_by_products, triton_serves


@pytest.mark.parametrize("mode", ["linear", "bicubic"])
@pytest.mark.parametrize("size", [(56, 64), (28, 64), (14, 16), (9, 41), (1, 1)])
def test_products_resize_as_interpolation_does(mode, size):
    x = torch.randn(2, 3, 28, 32, dtype=torch.float64, requires_grad=True)
    expected = F.interpolate(x, size=size, mode={"linear": "bilinear"}.get(mode, mode), align_corners=False)
    found = resize_by_products(x, size, mode)
    torch.testing.assert_close(found, expected)
    outer = torch.randn_like(expected)
    torch.testing.assert_close(*(torch.autograd.grad(y, x, outer)[0] for y in (found, expected)))


def test_products_keep_half_precision_and_compute_in_float32():
    x = torch.randn(1, 2, 8, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = resize_by_products(x, (11, 20), "linear")
    expected = F.interpolate(x.float(), size=(11, 20), mode="bilinear", align_corners=False)
    assert found.dtype == torch.bfloat16
    assert (found == expected.bfloat16()).float().mean() > 0.98  # another order of sums may round otherwise


def test_full_precision_turns_tf32_off_inside_alone():
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with full_precision(torch.zeros(1)):
            assert not torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def test_tensors_without_values_are_taken_for_a_gpus_inside_alone():
    x = torch.zeros(1)
    with as_on_gpu():
        assert triton_serves(x) == (find_spec("triton") is not None)
        assert not triton_serves(x.double())
    assert not triton_serves(x)
