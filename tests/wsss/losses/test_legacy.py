import json
import math

import pytest
import torch

from wsss.losses.align import alignment_distance
from wsss.losses.legacy import LEGACY_DISTANCES, softmax_kl

GOLDEN_NAMES = {
    ("legacy.global", "cosine"): "legacy_global_cos",
    ("legacy.global", "l1"): "legacy_global_l1",
    ("legacy.global", "l2"): "legacy_global_l2",
    ("legacy.spatial", "cosine"): "legacy_spatial_cos",
    ("legacy.channel_pairs", "cosine"): "legacy_channel_cos_allpairs",
    ("legacy.map_mean", "cosine"): "legacy_spatial_map_cos",
    ("legacy.map_mean", "l1"): "legacy_spatial_map_l1",
    ("legacy.map_mean", "l2"): "legacy_spatial_map_l2",
    ("legacy.inner", "cosine"): "legacy_inner",
}


@pytest.mark.parametrize("case", ["align_p0", "align_p1"])
@pytest.mark.parametrize(("level", "metric"), LEGACY_DISTANCES)
def test_value_and_gradient_equal_the_golden_vectors(golden, case, level, metric):
    arrays = golden(case)
    name = GOLDEN_NAMES[level, metric]
    skip_gradient = name in json.loads(str(arrays["meta"]))["grad_skip"]
    gradient = torch.from_numpy(arrays[f"{name}_grad_f64"]).double()
    for dtype, value_tolerance, gradient_tolerance in ((torch.float64, 1e-9, 1e-6), (torch.float32, 5e-6, 1e-5)):
        student = torch.from_numpy(arrays["student"]).to(dtype).requires_grad_()
        teacher = torch.from_numpy(arrays["teacher"]).to(dtype)
        loss = alignment_distance(student, teacher, level=level, metric=metric)
        loss.backward()
        expected = float(arrays[f"{name}_loss_f64"])
        assert abs(loss.item() - expected) <= value_tolerance * (1 + abs(expected))
        difference = (student.grad.double() - gradient)[torch.from_numpy(arrays["grad_check_mask"])].abs().max()
        assert skip_gradient or difference <= gradient_tolerance * gradient.abs().max() + 1e-6
    assert loss.item() == pytest.approx(float(arrays[f"{name}_loss_f32"]), rel=5e-6)


def test_every_published_golden_distance_is_compared(golden):
    arrays = golden("align_p0")
    published = {key[: -len("_loss_f64")] for key in arrays if key.startswith("legacy_") and key.endswith("_loss_f64")}
    assert published == set(GOLDEN_NAMES.values()) and set(GOLDEN_NAMES) == set(LEGACY_DISTANCES)


def test_the_published_l2_grows_with_the_square_root_of_the_grid_and_ours_does_not():
    for level, entries in (("global", 12), ("map_mean", 4)):
        for repeats in (1, 25):
            student, teacher = torch.ones(2, 3, 4).repeat(1, 1, repeats), torch.zeros(2, 3, 4).repeat(1, 1, repeats)
            published, ours = (
                alignment_distance(student, teacher, level=name, metric="l2").item()
                for name in (f"legacy.{level}", level)
            )
            assert published == pytest.approx(math.sqrt(entries * repeats)) and ours == pytest.approx(1)


def test_the_published_inner_product_compares_columns_and_ours_the_whole_matrix():
    student, teacher = torch.eye(2)[None], torch.diag(torch.tensor([1.0, 3.0]))[None]
    # every column of both Gram matrices lies along its own axis; the matrices diag(1, 1) and diag(1, 9) differ
    assert alignment_distance(student, teacher, level="legacy.inner").item() == pytest.approx(0, abs=1e-6)
    expected = 1 - 10 / (math.sqrt(2) * math.sqrt(82))
    assert alignment_distance(student, teacher, level="inner").item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("case", ["bkl_p0", "bkl_p1"])
def test_softmax_kl_equals_the_golden_vectors(golden, case):
    arrays = golden(case)
    student, teacher = (torch.from_numpy(arrays[f"{name}_logits"]) for name in ("student", "teacher"))
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        loss = softmax_kl(student.to(dtype), teacher.to(dtype)).item()
        expected = float(arrays["legacy_softmax_kl_f64"])
        assert abs(loss - expected) <= tolerance * (1 + abs(expected))


def test_softmax_kl_by_hand():
    # the teacher is uniform over two classes, the student (3/4, 1/4): -log(2) - log(3/16) / 2
    student, teacher = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)
    expected = -math.log(2) - math.log(3 / 16) / 2
    assert softmax_kl(student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_the_published_softmax_kl_has_no_temperature():
    student, teacher = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[0.5, 1.5, 0.0]])
    p, q = teacher.softmax(1), student.softmax(1)
    assert softmax_kl(student, teacher).item() == pytest.approx((p * (p / q).log()).sum().item(), rel=1e-5)
    with pytest.raises(TypeError):
        softmax_kl(student, teacher, tau=2.0)


def test_softmax_kl_of_one_class_is_zero_whatever_the_networks_say():
    student = torch.tensor([[5.0], [-90.0]], requires_grad=True)
    loss = softmax_kl(student, torch.tensor([[-5.0], [90.0]]))
    loss.backward()
    assert loss.item() == 0 and not student.grad.any()


def test_softmax_kl_computes_bf16_logits_in_float32():
    student, teacher = torch.randn(4, 5).bfloat16(), torch.randn(4, 5).bfloat16()
    expected = softmax_kl(student.float(), teacher.float())
    assert torch.equal(softmax_kl(student, teacher), expected)


def test_softmax_kl_refuses_unequal_classes():
    with pytest.raises(ValueError, match=r"wanted equal \(B, K\)"):
        softmax_kl(torch.zeros(2, 3), torch.zeros(2, 1))
