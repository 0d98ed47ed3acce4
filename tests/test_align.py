import math

import pytest
import torch

from wsss.align import DISTANCES, alignment_distance

GOLDEN_NAMES = {
    ("global", "cosine"): "global_flat_cos",
    ("global", "l1"): "global_l1",
    ("global", "l2"): "global_l2",
    ("spatial", "cosine"): "spatial_cos",
    ("spatial", "l1"): "global_l1",  # the mean of |S - T| is the same at every level
    ("spatial", "l2"): "spatial_l2",
    ("channel", "cosine"): "channel_diag_cos",
    ("channel", "l1"): "global_l1",
    ("channel", "l2"): "channel_l2",
}


@pytest.mark.parametrize("case", ["align_p0", "align_p1"])
@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize(("level", "metric"), GOLDEN_NAMES)
def test_value_and_gradient_equal_the_golden_vectors(golden, case, standardise, level, metric):
    arrays = golden(case)
    name = GOLDEN_NAMES[level, metric] + ("_std" if standardise else "")
    teacher = torch.from_numpy(arrays["teacher"])
    for dtype, value_tolerance, gradient_tolerance in ((torch.float64, 1e-9, 1e-6), (torch.float32, 5e-6, 1e-5)):
        student = torch.from_numpy(arrays["student"]).to(dtype).requires_grad_()
        loss = alignment_distance(student, teacher.to(dtype), level=level, metric=metric, standardise=standardise)
        loss.backward()
        expected = float(arrays[f"{name}_loss_f64"])
        assert abs(loss.item() - expected) <= value_tolerance * (1 + abs(expected))
        gradient = torch.from_numpy(arrays[f"{name}_grad_f64"]).double()
        difference = (student.grad.double() - gradient)[torch.from_numpy(arrays["grad_check_mask"])].abs().max()
        assert difference <= gradient_tolerance * gradient.abs().max() + 1e-6


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        ([1.0, 0.0], [5.0, 0.0], 0.0),  # scale does not matter
        ([1.0, 0.0], [0.0, 1.0], 1.0),  # orthogonal
        ([1.0, 0.0], [-1.0, 0.0], 2.0),  # opposite
        ([1.0, 1.0], [1.0, 0.0], 1 - 1 / math.sqrt(2)),  # 45 degrees
    ],
)
def test_global_cosine_is_one_minus_the_cosine(student, teacher, expected):
    distance = alignment_distance(torch.tensor([[student]]), torch.tensor([[teacher]]), level="global")
    assert distance.item() == pytest.approx(expected, abs=1e-6)


def test_l2_by_hand():
    student, teacher = torch.tensor([[[3.0, 0.0], [4.0, 0.0]]]), torch.zeros(1, 2, 2)
    # |S - T| over all four entries is 5; over the two positions (5, 0); over the two channels (3, 4)
    expected = {"global": 5 / math.sqrt(4), "spatial": 2.5 / math.sqrt(2), "channel": 3.5 / math.sqrt(2)}
    for level, value in expected.items():
        distance = alignment_distance(student, teacher, level=level, metric="l2")
        assert distance.item() == pytest.approx(value)


@pytest.mark.parametrize(("level", "metric"), DISTANCES)
def test_equal_maps_have_distance_zero_and_finite_gradient(level, metric):
    teacher = torch.randn(2, 3, 5)
    student = teacher.clone().requires_grad_()
    distance = alignment_distance(student, teacher, level=level, metric=metric)
    distance.backward()
    assert distance.item() == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize(("level", "metric"), DISTANCES)
def test_all_zero_maps_are_finite(level, metric):
    student = torch.zeros(1, 2, 4, requires_grad=True)
    for standardise in (False, True):
        alignment_distance(
            student, torch.zeros(1, 2, 4), level=level, metric=metric, standardise=standardise
        ).backward()
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("level", ["global", "spatial", "channel"])
def test_cosine_does_not_see_the_scale_of_the_student(level):
    student, teacher = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    near, far = (alignment_distance(k * student, teacher, level=level) for k in (0.5, 20.0))
    assert near.item() == pytest.approx(far.item(), abs=1e-6)


def test_losses_are_computed_in_float32_under_bf16_inputs():
    student, teacher = torch.randn(1, 2, 64), torch.randn(1, 2, 64)
    distance = alignment_distance(student.bfloat16(), teacher.bfloat16())
    assert distance.dtype == torch.float32


def test_different_shapes_are_both_named():
    with pytest.raises(ValueError, match=r"student \(2, 4, 8\) and teacher \(2, 16, 8\)"):
        alignment_distance(torch.zeros(2, 4, 8), torch.zeros(2, 16, 8))


def test_an_unknown_metric_names_those_there_are():
    with pytest.raises(ValueError, match="no alignment of level 'global' and metric 'cos'"):
        alignment_distance(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), metric="cos")
