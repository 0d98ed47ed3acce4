import json
import math
from typing import get_args

import pytest
import torch

from wsss.losses.align import DISTANCES, LOGIT_DISTANCES, Level, LogitLevel, Metric, alignment_distance, bernoulli_kl
from wsss.losses.legacy import softmax_kl

GOLDEN_NAMES = {
    ("global", "cosine"): "global_flat_cos",
    ("global", "l1"): "global_l1",
    ("global", "l2"): "global_l2",
    ("global", "mse"): "global_mse",
    ("spatial", "cosine"): "spatial_cos",
    ("spatial", "l1"): "global_l1",  # the mean of |S - T| is the same at every level
    ("spatial", "l2"): "spatial_l2",
    ("channel", "cosine"): "channel_diag_cos",
    ("channel", "l1"): "global_l1",
    ("channel", "l2"): "channel_l2",
    ("inner", "cosine"): "inner_cos",
    ("inner", "l1"): "inner_l1",
    ("inner", "l2"): "inner_l2",
}
UNSTANDARDISED_GOLDEN_NAMES = {
    ("pooled", "cosine"): "global_gap_cos",
    ("channel_pairs", "cosine"): "channel_allpairs_cos",
    **{
        (f"map_{reduced}", metric): f"spatial_map_{reduced}_{name}"
        for reduced in ("mean", "max", "power")
        for metric, name in (("cosine", "cos"), ("centred_cosine", "cos_centred"), ("l1", "l1"), ("l2", "l2"))
    },
}
NEVER_ZERO = {"channel_pairs", "legacy.channel_pairs"}


def assert_golden(arrays, name, **options):
    """Value and gradient of alignment_distance, in float64 and float32, within the tolerances of golden/README.md."""
    teacher = torch.from_numpy(arrays["teacher"])
    skip_gradient = name in json.loads(str(arrays["meta"]))["grad_skip"]
    for dtype, value_tolerance, gradient_tolerance in ((torch.float64, 1e-9, 1e-6), (torch.float32, 5e-6, 1e-5)):
        student = torch.from_numpy(arrays["student"]).to(dtype).requires_grad_()
        loss = alignment_distance(student, teacher.to(dtype), **options)
        loss.backward()
        expected = float(arrays[f"{name}_loss_f64"])
        assert abs(loss.item() - expected) <= value_tolerance * (1 + abs(expected))
        gradient = torch.from_numpy(arrays[f"{name}_grad_f64"]).double()
        difference = (student.grad.double() - gradient)[torch.from_numpy(arrays["grad_check_mask"])].abs().max()
        assert skip_gradient or difference <= gradient_tolerance * gradient.abs().max() + 1e-6


@pytest.mark.parametrize("case", ["align_p0", "align_p1"])
@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize(("level", "metric"), GOLDEN_NAMES)
def test_value_and_gradient_equal_the_golden_vectors(golden, case, standardise, level, metric):
    name = GOLDEN_NAMES[level, metric] + ("_std" if standardise else "")
    assert_golden(golden(case), name, level=level, metric=metric, standardise=standardise)


@pytest.mark.parametrize("case", ["align_p0", "align_p1"])
@pytest.mark.parametrize(("level", "metric"), UNSTANDARDISED_GOLDEN_NAMES)
def test_unstandardised_value_and_gradient_equal_the_golden_vectors(golden, case, level, metric):
    assert_golden(golden(case), UNSTANDARDISED_GOLDEN_NAMES[level, metric], level=level, metric=metric)


@pytest.mark.parametrize("case", ["align_p0", "align_p1"])
@pytest.mark.parametrize("tau", [1, 4])
def test_channel_softmax_equals_the_golden_vectors(golden, case, tau):
    assert_golden(golden(case), f"channel_cwd_tau{tau}", level="channel_softmax", metric="kl", tau=float(tau))


def test_every_golden_distance_is_compared_here_or_in_test_legacy(golden):
    names = {key.removesuffix("_loss_f64") for key in golden("align_p0") if key.endswith("_loss_f64")}
    compared = {*GOLDEN_NAMES.values(), *(f"{name}_std" for name in GOLDEN_NAMES.values())}
    compared |= {*UNSTANDARDISED_GOLDEN_NAMES.values(), "channel_cwd_tau1", "channel_cwd_tau4"}
    assert {name for name in names if not name.startswith("legacy_")} == compared


def test_the_words_a_config_may_use_are_those_of_the_tables():
    assert set(get_args(Level)) == {level for level, _ in DISTANCES}
    assert set(get_args(Metric)) == {metric for _, metric in DISTANCES}
    assert set(get_args(LogitLevel)) == set(LOGIT_DISTANCES)


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


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("global", 5 / math.sqrt(4)),  # all four entries: |(3, 0, 4, 0)| = 5
        ("spatial", 2.5 / math.sqrt(2)),  # per position (5, 0)
        ("channel", 3.5 / math.sqrt(2)),  # per channel (3, 4)
        ("pooled", 2.5 / math.sqrt(2)),  # means over positions (1.5, 2)
        ("inner", 12.5 / 2),  # X X^T / N = (9, 12; 12, 16) / 2, length 25 / 2
        ("map_mean", 3.5 / math.sqrt(2)),  # map (3.5, 0)
        ("map_max", 4 / math.sqrt(2)),  # map (4, 0)
        ("map_power", 12.5 / math.sqrt(2)),  # map ((9 + 16) / 2, 0)
    ],
)
def test_l2_by_hand(level, expected):
    student, teacher = torch.tensor([[[3.0, 0.0], [4.0, 0.0]]]), torch.zeros(1, 2, 2)
    assert alignment_distance(student, teacher, level=level, metric="l2").item() == pytest.approx(expected)


def test_mse_by_hand():
    student, teacher = torch.tensor([[[3.0, 0.0], [4.0, 0.0]]]), torch.zeros(1, 2, 2)
    assert alignment_distance(student, teacher, metric="mse").item() == pytest.approx(25 / 4)


def test_channel_softmax_by_hand():
    # the teacher is uniform over two positions, the student is (3/4, 1/4): KL = -log(2) - log(3/16) / 2
    student, teacher = torch.tensor([[[math.log(3.0), 0.0]]]), torch.zeros(1, 1, 2)
    options = {"level": "channel_softmax", "metric": "kl"}
    expected = -math.log(2) - math.log(3 / 16) / 2
    assert alignment_distance(student, teacher, **options).item() == pytest.approx(expected, rel=1e-5)
    assert alignment_distance(2 * student, teacher, **options, tau=2.0).item() == pytest.approx(4 * expected, rel=1e-5)


def test_a_centred_cosine_does_not_see_a_level_and_a_plain_one_does():
    teacher = torch.randn(2, 3, 20)
    for level in ("map_mean", "map_max"):
        plain, centred = (
            alignment_distance(5 + teacher, teacher, level=level, metric=metric).item()
            for metric in ("cosine", "centred_cosine")
        )
        assert centred == pytest.approx(0, abs=1e-5) and plain > 0.1


@pytest.mark.parametrize("rho", [-0.9, -0.5, 0.0, 0.6])
def test_channel_pairs_cannot_get_below_the_minimum_of_its_formula(rho):
    teacher = torch.tensor([[[1.0, 0.0], [rho, math.sqrt(1 - rho**2)]]])  # two channels at cosine rho
    minimum = 1 - math.sqrt((1 + rho) / 2)
    bisector = (teacher[:, :1] + teacher[:, 1:]).expand(1, 2, 2)
    at_best = alignment_distance(bisector, teacher, level="channel_pairs")
    assert at_best.item() == pytest.approx(minimum, abs=1e-6)
    for student in (teacher, *torch.randn(50, 1, 2, 2)):
        assert alignment_distance(student, teacher, level="channel_pairs").item() >= minimum - 1e-6


def test_channel_pairs_is_the_mean_over_all_pairs_of_unequally_many_channels():
    student, teacher = torch.randn(2, 3, 7), torch.randn(2, 5, 7)
    pairs = torch.nn.functional.cosine_similarity(student[:, :, None], teacher[:, None], dim=3)
    torch.testing.assert_close(alignment_distance(student, teacher, level="channel_pairs"), 1 - pairs.mean())


@pytest.mark.parametrize(("level", "metric"), [pair for pair in DISTANCES if pair[0] not in NEVER_ZERO])
def test_equal_maps_have_distance_zero_and_finite_gradient(level, metric):
    teacher = torch.randn(2, 3, 5)
    student = teacher.clone().requires_grad_()
    distance = alignment_distance(student, teacher, level=level, metric=metric)
    distance.backward()
    assert distance.item() == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize(("level", "metric"), DISTANCES)
def test_all_zero_maps_are_finite(level, metric):
    student, teacher = torch.zeros(1, 2, 4, requires_grad=True), torch.zeros(1, 2, 4)
    for standardise in (False,) if level == "pooled" else (False, True):
        alignment_distance(student, teacher, level=level, metric=metric, standardise=standardise).backward()
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("level", [level for level, metric in DISTANCES if metric == "cosine"])
def test_cosine_does_not_see_the_scale_of_the_student(level):
    student, teacher = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    near, far = (alignment_distance(k * student, teacher, level=level) for k in (0.5, 20.0))
    assert near.item() == pytest.approx(far.item(), abs=1e-6)


@pytest.mark.parametrize(("level", "metric"), [pair for pair in DISTANCES if "cosine" in pair[1]])
def test_cosine_is_between_zero_and_two(level, metric):
    for student, teacher in torch.randn(50, 2, 2, 3, 5):
        assert 0 <= alignment_distance(student, teacher, level=level, metric=metric).item() <= 2
    if level in ("map_power", "inner", "legacy.inner"):  # squares have no opposite
        return
    one_channel = torch.randn(2, 1, 5)
    assert alignment_distance(-one_channel, one_channel, level=level, metric=metric).item() == pytest.approx(2)


@pytest.mark.parametrize(("level", "metric"), DISTANCES)
def test_levels_that_do_not_pair_channels_take_any_number_of_them(level, metric):
    student, teacher = torch.randn(2, 4, 9, requires_grad=True), torch.randn(2, 16, 9)
    if level.removeprefix("legacy.") in ("channel_pairs", "map_mean", "map_max", "map_power"):
        alignment_distance(student, teacher, level=level, metric=metric).backward()
        assert student.grad.abs().max() > 0
    else:
        with pytest.raises(ValueError, match=r"must have the same \(B, D, N\): project the channels"):
            alignment_distance(student, teacher, level=level, metric=metric)


@pytest.mark.parametrize(("level", "metric"), DISTANCES)
def test_losses_are_computed_in_float32_under_bf16_inputs_and_autocast(level, metric):
    student, teacher = torch.randn(1, 2, 64).bfloat16(), torch.randn(1, 2, 64).bfloat16()
    expected = alignment_distance(student.float(), teacher.float(), level=level, metric=metric)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        distance = alignment_distance(student, teacher, level=level, metric=metric)
    assert distance.dtype == torch.float32 and torch.equal(distance, expected)


@pytest.mark.parametrize("case", ["bkl_p0", "bkl_p1"])
def test_bernoulli_kl_equals_the_golden_vectors(golden, case):
    arrays = golden(case)
    gradient = torch.from_numpy(arrays["grad_student_f64"])
    for dtype, value_tolerance, gradient_tolerance in ((torch.float64, 1e-9, 1e-12), (torch.float32, 1e-5, 3e-6)):
        student = torch.from_numpy(arrays["student_logits"]).to(dtype).requires_grad_()
        teacher = torch.from_numpy(arrays["teacher_logits"]).to(dtype)
        loss = bernoulli_kl(student, teacher, tau=float(arrays["tau"]))
        loss.backward()
        expected = float(arrays["loss_f64"])
        assert abs(loss.item() - expected) <= value_tolerance * (1 + abs(expected))
        assert (student.grad - gradient).abs().max() <= gradient_tolerance * gradient.abs().max() + 1e-9
        for index, value in zip(torch.arange(student.numel()), arrays["elementwise_f64"].ravel(), strict=True):
            one = bernoulli_kl(student.flatten()[index][None], teacher.flatten()[index][None], tau=float(arrays["tau"]))
            assert abs(one.item() - value) <= value_tolerance * (1 + abs(value))


def test_bernoulli_kl_by_hand():
    # p = 1/2 and q = 3/4: log(2/3) / 2 + log(2) / 2
    student, teacher = torch.tensor([[math.log(3.0)]]), torch.zeros(1, 1)
    assert bernoulli_kl(student, teacher).item() == pytest.approx(math.log(4 / 3) / 2)
    assert bernoulli_kl(student, student).item() == 0


def test_bernoulli_kl_is_exact_at_extreme_logits():
    student = torch.tensor([[90.0, -90.0, 90.0, -90.0]], requires_grad=True)
    teacher = torch.tensor([[-90.0, 90.0, 90.0, -90.0]])
    loss = bernoulli_kl(student, teacher)  # a certain student that is wrong pays its logit, 90, in 2 of 4 classes
    loss.backward()
    assert loss.item() == pytest.approx(45)
    torch.testing.assert_close(student.grad, torch.tensor([[1.0, -1.0, 0.0, 0.0]]) / 4)


def test_bernoulli_kl_teaches_one_class_where_the_softmax_form_teaches_nothing():
    teacher = torch.randn(6, 1)
    gradients = {}
    for distance, tau in ((bernoulli_kl, {"tau": 2.0}), (softmax_kl, {})):
        student = torch.randn(6, 1, requires_grad=True)
        distance(student, teacher, **tau).backward()
        gradients[distance] = student.grad.abs().min().item()
    assert gradients[bernoulli_kl] > 0 and gradients[softmax_kl] == 0


def test_different_shapes_are_both_named():
    with pytest.raises(ValueError, match=r"student \(2, 4, 8\) and teacher \(2, 16, 8\)"):
        alignment_distance(torch.zeros(2, 4, 8), torch.zeros(2, 16, 8))
    with pytest.raises(ValueError, match=r"student logits \(2, 1\) and teacher logits \(2, 3\)"):
        bernoulli_kl(torch.zeros(2, 1), torch.zeros(2, 3))


@pytest.mark.parametrize("teacher_shape", [(3, 4, 8), (2, 4, 9), (2, 4, 2, 4)])
def test_batch_and_grid_must_agree_at_every_level(teacher_shape):
    for level, metric in DISTANCES:
        with pytest.raises(ValueError, match="must have the same .*resize the grid first"):
            alignment_distance(torch.zeros(2, 4, 8), torch.zeros(teacher_shape), level=level, metric=metric)


def test_maps_of_four_axes_are_refused():
    with pytest.raises(ValueError, match=r"student \(2, 4, 3, 3\) and teacher \(2, 4, 3, 3\)"):
        alignment_distance(torch.zeros(2, 4, 3, 3), torch.zeros(2, 4, 3, 3))


def test_an_unknown_metric_names_those_there_are():
    with pytest.raises(ValueError, match="level 'global' and metric 'cos'; .* global .cosine, l1, l2, mse"):
        alignment_distance(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), metric="cos")


def test_a_temperature_where_it_has_no_meaning_is_refused():
    maps = torch.zeros(1, 1, 1), torch.zeros(1, 1, 1)
    with pytest.raises(ValueError, match="tau is 2.0 at the level 'global'"):
        alignment_distance(*maps, tau=2.0)
    with pytest.raises(ValueError, match="tau is 0.0; wanted > 0"):
        alignment_distance(*maps, level="channel_softmax", metric="kl", tau=0.0)
    with pytest.raises(ValueError, match="tau is -1.0; wanted > 0"):
        bernoulli_kl(torch.zeros(1, 1), torch.zeros(1, 1), tau=-1.0)


def test_standardising_what_pooled_compares_is_refused():
    with pytest.raises(ValueError, match="standardise makes every spatial mean 0"):
        alignment_distance(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2), level="pooled", standardise=True)
