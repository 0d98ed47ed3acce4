import math

import numpy as np
import pytest
import torch

from wsss.losses.contrast import (
    class_token_contrast,
    crop_flags,
    draw_crops,
    pair_mask,
    patch_token_contrast,
    take_crops,
)
from wsss.tensors import mixed


def tensor(array, dtype=None):
    return torch.from_numpy(np.asarray(array)).to(dtype)


def assert_near(got, expected, tolerance):
    """|got - expected| <= tolerance (1 + |expected|)."""
    assert abs(got.item() - float(expected)) <= tolerance * (1 + abs(float(expected)))


def assert_gradient(got, expected, tolerance):
    expected = tensor(expected, torch.float64)
    assert (got.double() - expected).abs().max() <= tolerance * expected.abs().max() + 1e-9


# pair_mask


def test_pairs_equal_the_golden_vectors(golden):
    arrays = golden("ptc_p0")
    pairs = pair_mask(tensor(arrays["labels"]))
    assert pairs.dtype == torch.uint8 and torch.equal(pairs, tensor(arrays["pair_mask"]))
    assert (pairs == 1).sum() == arrays["n_pos"] and (pairs == 0).sum() == arrays["n_neg"]


def test_pairs_of_two_backgrounds_a_class_and_an_ignored_position_by_hand():
    expected = [[255, 1, 0, 255], [1, 255, 0, 255], [0, 0, 255, 255], [255, 255, 255, 255]]
    assert pair_mask(torch.tensor([[[0, 0], [3, 255]]])).tolist() == [expected]


# patch_token_contrast


@pytest.mark.parametrize("case", ["ptc_p0", "ptc_p1"])
@pytest.mark.parametrize(("dtype", "value", "gradient"), [(torch.float64, 1e-9, 1e-9), (torch.float32, 1e-6, 3e-6)])
def test_patch_token_contrast_equals_the_golden_vectors(golden, case, dtype, value, gradient):
    arrays = golden(case)
    features = tensor(arrays["features"], dtype).requires_grad_()
    loss = patch_token_contrast(features, tensor(arrays["pair_mask"]))
    loss.backward()
    assert loss.dtype == dtype
    assert_near(loss, arrays["loss_f64"], value)
    assert_gradient(features.grad, arrays["grad_features_f64"], gradient)


def test_patch_token_contrast_of_three_tokens_by_hand():
    # Tokens (1, 0), (-2, 0), (3, 4): |cos| = 1 for the first two, 0.6 with the third. Both orders of a pair count.
    features = torch.tensor([[1.0, -2.0, 3.0], [0.0, 0.0, 4.0]]).view(1, 2, 1, 3)
    loss = patch_token_contrast(features, pair_mask(torch.tensor([[[1, 1, 2]]])))
    assert loss.item() == pytest.approx(0.5 * (1 - 2 / 3) + 0.5 * (4 * 0.6) / 5)


def test_without_a_known_pair_the_loss_is_a_half_and_has_no_gradient():
    features = torch.randn(2, 4, 3, 3, requires_grad=True)
    loss = patch_token_contrast(features, pair_mask(torch.full((2, 3, 3), 255)))
    loss.backward()
    assert loss.item() == 0.5 and not features.grad.any()


def test_a_token_of_zeros_gets_no_gradient_and_spoils_none():
    features = torch.randn(1, 4, 2, 2)
    features[0, :, 0, 0] = 0
    features.requires_grad_()
    patch_token_contrast(features, pair_mask(torch.tensor([[[1, 1], [0, 0]]]))).backward()
    assert not features.grad[0, :, 0, 0].any() and features.grad.isfinite().all() and features.grad.any()


def test_opposite_gradients_for_positive_and_negative_pairs():
    features = torch.randn(1, 4, 1, 2)
    for labels, sign in (([1, 1], -1), ([1, 0], 1)):  # turning the tokens to each other changes the loss with `sign`
        pairs = pair_mask(torch.tensor([[labels]]))
        far = patch_token_contrast(features, pairs)
        nearer = features.clone()
        nearer[..., 1] = nearer[..., 0] + 0.1 * nearer[..., 1]
        assert (patch_token_contrast(nearer, pairs) - far).sign() == sign


def test_groups_make_the_patch_loss_independent_of_processes():
    features, labels = torch.randn(6, 4, 3, 3), torch.randint(0, 3, (6, 3, 3))
    labels[4] = 255
    pairs = pair_mask(labels)
    grouped = patch_token_contrast(features, pairs, group_size=2)
    alone = [patch_token_contrast(features[i : i + 2], pairs[i : i + 2]) for i in (0, 2, 4)]
    assert grouped.item() == pytest.approx(torch.stack(alone).mean().item(), rel=1e-6)
    spread = [patch_token_contrast(features[i], pairs[i], group_size=2) for i in (slice(0, 4), slice(4, 6))]
    assert grouped.item() == pytest.approx((2 * spread[0] + spread[1]).item() / 3, rel=1e-6)
    assert abs(grouped - patch_token_contrast(features, pairs)) > 1e-4


@pytest.mark.parametrize("group_size", [4, 0, -1])
def test_a_batch_that_does_not_divide_into_groups_is_told(group_size):
    with pytest.raises(ValueError, match=f"6 images .* groups of {group_size}: choose a group size that divides"):
        patch_token_contrast(torch.randn(6, 2, 1, 2), torch.zeros(6, 2, 2), group_size=group_size)


# class_token_contrast


@pytest.mark.parametrize("case", ["ctc_p0", "ctc_p1"])
@pytest.mark.parametrize(("dtype", "value", "gradient"), [(torch.float64, 1e-9, 1e-9), (torch.float32, 1e-6, 6e-6)])
def test_class_token_contrast_equals_the_golden_vectors(golden, case, dtype, value, gradient):
    arrays = golden(case)
    images, crops = arrays["flags"].shape

    def per_image(name, count):  # rows are crop-major
        return tensor(arrays[name], dtype).view(count, images, -1).transpose(0, 1)

    student, teacher = per_image("student", crops).requires_grad_(), per_image("teacher", 2).requires_grad_()
    flags, temperature = tensor(arrays["flags"]), float(arrays["temp"])
    loss = class_token_contrast(student, teacher, flags, temperature=temperature)
    loss.backward()
    assert loss.dtype == dtype
    assert_near(loss, arrays["loss_f64"], value)
    assert_gradient(student.grad, per_image("grad_student_f64", crops), gradient)
    assert_gradient(teacher.grad, per_image("grad_teacher_f64", 2), gradient)
    for image, expected in enumerate(arrays["loss_per_image_f64"]):
        only = slice(image, image + 1)
        alone = class_token_contrast(student[only], teacher[only], flags[only], temperature=temperature)
        assert_near(alone, expected, value)


def test_class_token_contrast_of_one_positive_and_one_negative_crop_by_hand():
    # a = 2 for the positive and 1 for the negative crop at temperature 0.5.
    student, teacher = torch.tensor([[[1.0], [0.5]]]).double(), torch.tensor([[[1.0]]]).double()
    loss = class_token_contrast(student, teacher, torch.tensor([[1.0, 0.0]]), temperature=0.5)
    negatives = math.exp(1) + 1e-4
    by_hand = -math.log(math.exp(2) / (math.exp(2) + negatives)) - math.log(1 / (1 + negatives))
    assert loss.item() == pytest.approx(by_hand / (1 + 1e-4), rel=1e-12)


def test_without_negatives_only_the_floor_of_1e_4_is_left():
    student, teacher = torch.zeros(1, 3, 2), torch.ones(1, 2, 2)
    loss = class_token_contrast(student, teacher, torch.ones(1, 3), temperature=1.0)
    assert loss.item() == pytest.approx(4 * math.log(1 + 1e-4) / (3 + 1e-4), rel=1e-4)


def test_an_image_without_a_positive_crop_follows_the_formula():
    student, teacher = torch.zeros(1, 1, 2), torch.ones(1, 2, 2)
    loss = class_token_contrast(student, teacher, torch.zeros(1, 1), temperature=1.0)
    assert loss.item() == pytest.approx(math.log(2 + 1e-4) / 1e-4, rel=1e-4)


@pytest.mark.parametrize("size", [100.0, 1000.0])
def test_large_logits_stay_finite_in_float32(size):
    student = torch.tensor([[[1.0], [1.0], [-1.0]]]).mul(size).requires_grad_()
    loss = class_token_contrast(student, torch.ones(1, 1, 1), torch.tensor([[1.0, 0.0, 1.0]]), temperature=1.0)
    loss.backward()
    # a = size, size, -size: -log(1/2) + 2 size for the positives, size for the negative alone
    assert loss.item() == pytest.approx((math.log(2) + 3 * size) / 2, rel=1e-4)
    assert student.grad.isfinite().all() and student.grad.any()


def test_the_class_loss_falls_when_positives_near_the_teacher_and_negatives_leave_it():
    teacher, flags = torch.randn(2, 2, 8), torch.tensor([[1.0, 0.0]] * 2)
    student = torch.randn(2, 2, 8)
    start = class_token_contrast(student, teacher, flags, temperature=0.5)
    for crop, direction in ((0, 1), (1, -1)):
        moved = student.clone()
        moved[:, crop] += 0.1 * direction * teacher.mean(dim=1)
        assert class_token_contrast(moved, teacher, flags, temperature=0.5) < start


def test_a_temperature_of_zero_is_told():
    with pytest.raises(ValueError, match="temperature is 0.0; wanted > 0"):
        class_token_contrast(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), torch.ones(1, 1), temperature=0.0)


# draw_crops


@pytest.mark.parametrize("case", ["roicrops_p0", "roicrops_p1"])
def test_crops_are_drawn_from_the_golden_candidates_without_replacement(golden, case):
    arrays = golden(case)
    roi, allowed = tensor(arrays["roi_mask"]), tensor(arrays["candidate_mask"])
    crop_size, crop_num = int(arrays["crop_size"]), int(arrays["crop_num"])
    for first_seed in range(0, 300, 3):
        seeds = torch.arange(first_seed, first_seed + len(roi))
        corners = draw_crops(roi, seeds, crop_size=crop_size, crop_num=crop_num)
        assert corners.dtype == torch.int64 and corners.shape == (len(roi), crop_num, 2)
        for image, corner_n2 in enumerate(corners):
            assert len(set(map(tuple, corner_n2.tolist()))) == crop_num
            y, x = corner_n2.unbind(dim=1)
            assert arrays["fallback"][image] or allowed[image, y, x].all()
            assert (corner_n2 >= 0).all() and y.max() < allowed.shape[1] and x.max() < allowed.shape[2]


def small_map():
    """8 x 9 pixels, 4 x 5 = 20 corners of crops of 4 px, 7 of them with a certain centre."""
    certainty = torch.zeros(8, 9, dtype=torch.int64)
    certainty[3:5, 3:6] = 2
    certainty[5, 6] = 2
    certainty[0] = 2  # in no crop's centre
    certainty[2, 2] = 1
    return certainty


def test_every_candidate_is_drawn_equally_often_and_no_other():
    seeds, drawn = 20_000, 3
    corners = draw_crops(small_map().expand(seeds, -1, -1), torch.arange(seeds), crop_size=4, crop_num=drawn)
    counts = torch.bincount((corners[..., 0] * 5 + corners[..., 1]).flatten(), minlength=20)
    candidate = (small_map()[2:6, 2:7] <= 1).flatten()
    assert candidate.sum() == 13 and not counts[~candidate].any()
    expected = seeds * drawn / 13
    chi_square = ((counts[candidate] - expected) ** 2 / expected).sum()
    assert chi_square < 32.9  # 12 degrees of freedom, p = 0.001; the seeds are fixed
    pairs = torch.bincount(
        corners[:, 0].mul(torch.tensor([5, 1])).sum(1) * 20 + corners[:, 1].mul(torch.tensor([5, 1])).sum(1)
    )
    pairs = pairs[pairs > 0]
    assert len(pairs) == 13 * 12  # every ordered pair of two different candidates
    assert ((pairs - seeds / 156) ** 2 / (seeds / 156)).sum() < 214.5  # 155 degrees of freedom, p = 0.001


def test_too_few_candidates_open_all_corners():
    certainty = torch.full((8, 9), 2)
    certainty[2, 2] = certainty[3, 2] = 0
    seeds = torch.arange(400)
    three = draw_crops(certainty.expand(400, -1, -1), seeds, crop_size=4, crop_num=3)
    assert len(torch.unique(three.flatten(0, 1), dim=0)) == 20
    two = draw_crops(certainty.expand(400, -1, -1), seeds, crop_size=4, crop_num=2)
    assert torch.unique(two.flatten(0, 1), dim=0).tolist() == [[0, 0], [1, 0]]


def test_the_draw_of_an_image_does_not_depend_on_its_batch():
    certainty, seeds = torch.randint(0, 3, (5, 40, 30)), torch.tensor([3, -1, 2**62, 0, -(2**63)])
    together = draw_crops(certainty, seeds, crop_size=8, crop_num=6)
    alone = [draw_crops(certainty[i : i + 1], seeds[i : i + 1], crop_size=8, crop_num=6) for i in range(5)]
    assert torch.equal(together, torch.cat(alone))
    same_map = draw_crops(certainty[:1].expand(5, -1, -1), seeds, crop_size=8, crop_num=6)
    assert len({tuple(corners.flatten().tolist()) for corners in same_map}) == 5


def test_the_hash_is_splitmix64s():
    # The first outputs of splitmix64 for the seed 0 and for 1234567, as unsigned numbers.
    gamma = 0x9E3779B97F4A7C15
    states = [gamma - 2**64, (2 * gamma) % 2**64, 1234567 + gamma - 2**64]
    outputs = [value % 2**64 for value in mixed(torch.tensor(states)).tolist()]
    assert outputs == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 6457827717110365317]


@pytest.mark.parametrize(("crop_size", "crop_num", "places"), [(8, 2, 0), (20, 1, 0), (4, 17, 16)])
def test_an_image_too_small_for_its_crops_is_told(crop_size, crop_num, places):
    with pytest.raises(
        ValueError, match=f"an image of 8 x 8 px has {places} places for .* method.crop_num is {crop_num}"
    ):
        draw_crops(torch.zeros(1, 8, 8), torch.zeros(1).long(), crop_size=crop_size, crop_num=crop_num)


def test_an_image_with_one_place_has_its_crop_there():
    assert draw_crops(torch.zeros(1, 9, 9), torch.zeros(1).long(), crop_size=8, crop_num=1).tolist() == [[[0, 0]]]


# crop_flags, take_crops


@pytest.mark.parametrize("case", ["roicrops_p0", "roicrops_p1"])
def test_crop_flags_equal_the_golden_vectors(golden, case):
    arrays = golden(case)
    flags = crop_flags(
        tensor(arrays["roi_mask"]), tensor(arrays["topleft"]), crop_size=int(arrays["crop_size"]), threshold=0.2
    )
    assert flags.dtype == torch.float32 and torch.equal(flags, tensor(arrays["flags"])[:, 2:])


def test_a_crop_at_the_threshold_is_background_and_certain_foreground_counts_twice():
    certainty = torch.zeros(1, 10, 12, dtype=torch.int16)
    certainty[0, 5:7, 2:7] = 2  # 20 in the crop of 100 pixels at (0, 0): 0.2
    corners = torch.tensor([[[0, 0], [0, 2], [0, 1]]])
    assert crop_flags(certainty, corners, crop_size=10).tolist() == [[0.0, 0.0, 0.0]]
    certainty[0, 9, 11] = 1  # in the crop at (0, 2) alone
    assert crop_flags(certainty, corners, crop_size=10).tolist() == [[0.0, 1.0, 0.0]]


def test_crop_flags_equal_sums_over_the_crops_themselves():
    certainty, corners = torch.randint(0, 3, (3, 20, 30)), torch.randint(0, 12, (3, 7, 2))
    means = take_crops(certainty[:, None], corners, 8).double().mean(dim=(2, 3, 4))
    threshold = means.median().item()
    assert torch.equal(crop_flags(certainty, corners, crop_size=8, threshold=threshold), (means > threshold).float())


def test_crops_are_windows_of_their_own_image_at_their_corners():
    image, corners = torch.rand(2, 3, 9, 11), torch.tensor([[[0, 0], [5, 7], [2, 1]], [[1, 6], [5, 0], [3, 3]]])
    crops = take_crops(image, corners, 4)
    assert crops.shape == (2, 3, 3, 4, 4)
    for b in range(2):
        for n in range(3):
            y, x = corners[b, n]
            assert torch.equal(crops[b, n], image[b, :, y : y + 4, x : x + 4])
