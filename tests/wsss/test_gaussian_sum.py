import os
import subprocess
import sys

import pytest
import torch

from wsss.gaussian_sum import (
    FUSED,
    bilateral_features,
    cuda_attention,
    gaussian_sum,
    gaussian_sum_chunked,
    gaussian_sum_on_grid,
)

EXTREMES = ["noise", "outliers", "one"]


def extreme_points(kind: str) -> torch.Tensor:
    """Features of 13 x 17 pixels in 0..255: noise, a dark image with few bright pixels, one colour."""
    image = {
        "noise": torch.rand(2, 3, 13, 17) * 255,
        "outliers": torch.rand(2, 3, 13, 17),
        "one": torch.full((2, 3, 13, 17), 250.0),
    }[kind]
    if kind == "outliers":
        image[..., :2, :2] = 255
    return bilateral_features(image.double(), 15.0, 50.0)


def centred(points: torch.Tensor) -> torch.Tensor:
    return points - (points.amax(dim=1, keepdim=True) + points.amin(dim=1, keepdim=True)) / 2


def assert_sums(device: str, kind: str, classes: int, dtype: torch.dtype, tolerance: float) -> None:
    points, values = extreme_points(kind), torch.rand(2, 13 * 17, classes, dtype=torch.float64)
    difference = points[:, :, None] - points[:, None]
    expected = (difference.square().sum(3) / -2).exp() @ values
    on_device = points.to(device, dtype), values.to(device, dtype)
    for sums in (
        gaussian_sum(*on_device),
        gaussian_sum_chunked(centred(on_device[0]), on_device[1], chunk=5),
    ):
        assert sums.dtype == dtype
        torch.testing.assert_close(sums.double().cpu(), expected, rtol=tolerance, atol=0)


@pytest.mark.parametrize("kind", EXTREMES)
@pytest.mark.parametrize("classes", [1, 3, 21])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 3e-5)])
def test_the_kernels_sum_what_the_formula_says(kind, classes, dtype, tolerance):
    assert_sums("cpu", kind, classes, dtype, tolerance)


def test_points_may_have_more_features_than_there_are_values():
    points, values = torch.randn(1, 30, 11, dtype=torch.float64), torch.rand(1, 30, 2, dtype=torch.float64)
    expected = (torch.cdist(points, points).square() / -2).exp() @ values
    torch.testing.assert_close(gaussian_sum(points, values), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_cuda_kernel_sums_what_the_formula_says():
    for kind in EXTREMES:
        for classes in (1, 3, 21, 81):
            assert_sums("cuda", kind, classes, torch.float32, 1e-3)


def test_the_cpu_has_a_fused_kernel_and_a_device_without_one_takes_the_chunks(monkeypatch):
    points, values, called = torch.randn(1, 6, 5), torch.rand(1, 6, 2), []
    fused = FUSED["cpu", torch.float32]
    monkeypatch.setitem(FUSED, ("cpu", torch.float32), lambda *heads: called.append(1) or fused(*heads))
    sums = gaussian_sum(points, values)
    assert called
    monkeypatch.delitem(FUSED, ("cpu", torch.float32))
    torch.testing.assert_close(gaussian_sum(points, values), sums)
    assert len(called) == 1


def test_the_cuda_kernel_is_called_with_shapes_that_it_takes():
    queries, values = torch.empty(2, 70, 6, device="meta"), torch.empty(2, 70, 21, device="meta")
    mean, log_Z = cuda_attention(queries, queries, values)
    assert mean.shape == (2, 70, 21) and log_Z.shape == (2, 70)


def interpreted_sums(kind: str, classes: int, stripe: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The GPU's kernel, run by Triton's interpreter, and the formula."""
    gaussian_triton = pytest.importorskip("wsss.gaussian_triton")
    points, values = extreme_points(kind), torch.rand(2, 13 * 17, classes, dtype=torch.float64)
    expected = (torch.cdist(points, points).square() / -2).exp() @ values
    found = gaussian_triton.triton_gaussian_sum(centred(points.float()), values.float(), stripe)
    return found, expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton compiles here")
@pytest.mark.parametrize("kind", EXTREMES)
@pytest.mark.parametrize(("classes", "stripe"), [(1, 1), (21, 1), (21, 2), (40, 4)])
def test_the_kernel_of_our_own_sums_what_the_formula_says(kind, classes, stripe):
    found, expected = interpreted_sums(kind, classes, stripe)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton compiles here")
def test_tiles_that_are_far_apart_are_left_out_and_no_near_one_is(monkeypatch):
    gaussian_triton = pytest.importorskip("wsss.gaussian_triton")
    seen = []
    near_tiles = gaussian_triton.near_tiles
    monkeypatch.setattr(gaussian_triton, "near_tiles", lambda *x: seen.append(near_tiles(*x)) or seen[-1])
    points = torch.zeros(1, 256, 5)
    points[:, ::2, 2] = 40.0  # two clouds, mixed: sorted they are two tiles each
    found = gaussian_triton.triton_gaussian_sum(centred(points), torch.ones(1, 256, 1))
    assert seen[0].float().mean() == 0.5
    assert (found == 128).all()


def test_a_stripe_is_near_to_what_one_of_its_tiles_is_near_to():
    gaussian_triton = pytest.importorskip("wsss.gaussian_triton")
    tiles_BTID = torch.arange(8.0)[:, None, None].expand(1, 8, 4, 5).contiguous()  # on a line; tiles i, i + 2 are near
    counts = [gaussian_triton.near_columns(tiles_BTID, stripe)[1].tolist() for stripe in (1, 2, 4)]
    assert counts == [[[3, 4, 5, 5, 5, 5, 4, 3]], [[4, 6, 6, 4]], [[6, 6]]]
    assert gaussian_triton.near_columns(tiles_BTID, 2)[0][0, 1].tolist()[:6] == [0, 1, 2, 3, 4, 5]


def test_the_near_tiles_of_a_large_image_are_found_some_rows_at_a_time(monkeypatch):
    """Those of 1920 x 1080 points at once took 60 GB."""
    gaussian_triton = pytest.importorskip("wsss.gaussian_triton")
    tiles_BTID = 9 * torch.rand(2, 7, 4, 5).sort(dim=1).values
    which, count = gaussian_triton.near_columns(tiles_BTID)
    assert count.min() > 0 and count.max() == 7 and count.float().mean() < 7
    looked_at = []
    near_tiles = gaussian_triton.near_tiles
    monkeypatch.setattr(gaussian_triton, "near_tiles", lambda *x: looked_at.append(len(x[0][0])) or near_tiles(*x))
    monkeypatch.setattr(gaussian_triton, "AT_A_TIME", 2 * 2 * 7)
    torch.testing.assert_close(gaussian_triton.near_columns(tiles_BTID), (which, count))
    assert looked_at == [2, 2, 2, 1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the other tests run them")
def test_the_kernels_of_our_own_build_for_a_gpu():
    """Compiled for Hopper without one, in a process where Triton does not interpret."""
    pytest.importorskip("triton")
    program = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from wsss import gaussian_triton as sums
from wsss.maps import par_triton as par

def build(kernel, signature, **constants):
    names = {**signature, **{name: "constexpr" for name in constants}}
    compile(ASTSource(fn=kernel, signature=names, constexprs=constants), target=GPUTarget("cuda", 90, 32))

f, h, i = "*fp32", "*fp16", "*i32"
size = {"height": "i32", "width": "i32"}
dilations = (1, 2, 4, 8, 12, 24)
build(sums.colour_code, dict(feature_ptr=f, low_ptr=f, span_ptr=f, code_ptr=i, points="i32"), BITS=10, BLOCK=1024)
near = dict(left_ptr=h, right_ptr=h, v_ptr=h, which_ptr=i, count_ptr=i, out_ptr=f, points="i32", tiles="i32")
for stripe in (1, 2):
    build(sums.near_sums, near, WIDTH=24, C=32, K=32, TILE=sums.TILE, STRIPE=stripe)
weights = dict(image_ptr=f, position_ptr=f, weight_ptr=f, **size, sharpness="fp32", eps="fp32")
build(par.weights_kernel, weights, DILATIONS=dilations, LANES=64, PIXELS=par.PIXELS)
maps = dict(masks_ptr=f, weight_ptr=f, out_ptr=f, maps="i32", **size)
build(par.propagate_kernel, maps, DILATIONS=dilations, MAPS=par.MAPS, PIXELS=par.PIXELS)
"""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)


def test_on_a_grid_the_points_of_a_cell_are_one():
    """Three points in one cell of side 1 about 0, 0.3, 0.6, and one at 2.3: means 0.3 and 2.3, a distance of 2."""
    points, values = torch.tensor([[[0.0], [0.3], [2.3], [0.6]]]), torch.tensor([[[1.0], [2], [10], [4]]])
    sums = gaussian_sum_on_grid(points, values, torch.tensor([1.0]))
    far = torch.tensor(-2.0).exp()
    torch.testing.assert_close(sums[0, :, 0], torch.stack([7 + 10 * far, 7 + 10 * far, 10 + 7 * far, 7 + 10 * far]))


def test_a_grid_whose_cells_hold_one_point_each_gives_the_exact_sum():
    points, values = torch.rand(2, 50, 5, dtype=torch.float64), torch.rand(2, 50, 3, dtype=torch.float64)
    sums = gaussian_sum_on_grid(points, values, torch.full((5,), 1e-3, dtype=torch.float64))
    torch.testing.assert_close(sums, gaussian_sum(points, values))
    one = gaussian_sum_on_grid(points, values, torch.full((5,), 2.0, dtype=torch.float64))
    torch.testing.assert_close(one, values.sum(1, keepdim=True).expand(-1, 50, -1))
