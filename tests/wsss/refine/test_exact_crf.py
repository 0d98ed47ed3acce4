import sys

import numpy as np
import pytest
import torch

from wsss.extras import MissingPackage
from wsss.refine import crf
from wsss.refine.crf import choose_sum, dense_crf, mean_field
from wsss.refine.exact_crf import exact_mean_field

NAMES = ("iterations", "gaussian_sxy", "gaussian_weight", "bilateral_sxy", "bilateral_srgb", "bilateral_weight")
GOLDEN = [
    *[
        (case, name, "probs", f"{name}_Q_exact_f64")
        for case in ("crf_p0", "crf_p1")
        for name in ("toco_seg", "toco_cam")
    ],
    ("crf_p1", "thesis", "thesis_unary_probs_gamma16_f32", "thesis_Q_exact_gamma16_f64"),
]


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=NO_GPU)])
def device(request, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param == "cuda")
    return request.param


def options_of(params):
    return {**dict(zip(NAMES, params.tolist(), strict=True)), "iterations": int(params[0])}


@pytest.mark.parametrize(("case", "name", "probs", "wanted"), GOLDEN)
def test_the_exact_marginals_equal_the_golden_vectors(golden, device, case, name, probs, wanted):
    arrays = golden(case)
    found = mean_field(arrays["image"], arrays[probs], **options_of(arrays[f"{name}_params"]), by="exact")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, arrays[wanted], atol=1e-3 if device == "cpu" else 2e-2)
    assert (found.argmax(0) == arrays[wanted].argmax(0)).mean() > 0.999


@pytest.mark.parametrize(("case", "name", "probs", "wanted"), GOLDEN)
def test_the_lattice_is_as_far_from_the_exact_sum_as_the_golden_vectors_are(golden, case, name, probs, wanted):
    pytest.importorskip("pydensecrf")
    arrays, options = golden(case), options_of(golden(case)[f"{name}_params"])
    both = [mean_field(arrays["image"], arrays[probs], **options, by=by) for by in ("lattice", "exact")]
    assert np.abs(both[0] - both[1]).mean() <= 0.03
    assert (both[0].argmax(0) == both[1].argmax(0)).mean() >= 0.97


def test_in_double_precision_two_pixels_by_hand():
    """Equal colours, one pixel apart, all widths 1: k = [[1, e], [e, 1]] with e = exp(-1/2), n = 1 / sqrt(1 + e)."""
    probs = torch.tensor([[[0.9, 0.4]], [[0.1, 0.6]]], dtype=torch.float64)
    found = exact_mean_field(
        torch.full((1, 2, 3), 7, dtype=torch.uint8),
        probs,
        iterations=1,
        gaussian_sxy=1.0,
        gaussian_weight=2.0,
        bilateral_sxy=1.0,
        bilateral_srgb=1.0,
        bilateral_weight=3.0,
    )
    e = np.exp(-0.5)
    left = (probs[:, 0, 0] + e * probs[:, 0, 1]) / (1 + e)
    score = probs[:, 0, 0].log() + (2 + 3) * left
    torch.testing.assert_close(found[:, 0, 0], score.softmax(0))


def test_an_exact_sum_may_be_chosen_for_a_refiner_and_changes_few_pixels(golden):
    pytest.importorskip("pydensecrf")
    arrays = golden("crf_p1")
    lattice, exact = (dense_crf(arrays["image"], arrays["cam"][None], by=by)[0] for by in ("lattice", "exact"))
    assert 0 < ((lattice >= 0.3) != (exact >= 0.3)).mean() < 0.01


@pytest.fixture
def bare(monkeypatch):
    """A machine without pydensecrf."""
    monkeypatch.setattr(crf, "is_installed", lambda name: False)
    monkeypatch.setitem(sys.modules, "pydensecrf", None)


def test_where_pydensecrf_is_not_installed_the_sum_is_exact(bare, golden):
    arrays = golden("crf_p1")
    options = options_of(arrays["toco_seg_params"])
    assert choose_sum(None) == choose_sum("exact") == "exact"
    np.testing.assert_array_equal(
        mean_field(arrays["image"], arrays["probs"], **options),
        mean_field(arrays["image"], arrays["probs"], **options, by="exact"),
    )


def test_where_it_is_installed_the_sum_is_a_lattice_but_on_gpus(monkeypatch):
    monkeypatch.setattr(crf, "is_installed", lambda name: True)
    assert choose_sum(None) == choose_sum(None, "cpu") == choose_sum("lattice", "cuda") == "lattice"
    assert choose_sum(None, "cuda") == choose_sum("exact", "cpu") == "exact"


@pytest.mark.parametrize(
    ("python", "remedy"), [((3, 12), r"pip install 'wsss\[crf\]'"), ((3, 13), "--no-build-isolation pydensecrf2;")]
)
def test_a_lattice_that_cannot_be_says_what_to_do(bare, monkeypatch, python, remedy):
    monkeypatch.setattr(crf.sys, "version_info", python)
    with pytest.raises(MissingPackage, match=f"'pydensecrf', which is not installed: .*{remedy}.* by: exact"):
        choose_sum("lattice")
