import numpy as np
import pytest
import torch

from wsss.losses.regions import (
    feature_distance,
    fires,
    region_loss,
    reliable_regions,
    scale_cams,
    segmented_class,
    thresholds,
)

CONFIGURATIONS = {  # golden name -> classes, scales in order of priority, region masks
    "A2": ("agnostic", ("1.5", "0.5"), True),
    "P2": ("per_class", ("1.5", "0.5"), True),
    "A3": ("agnostic", ("1.5", "2.0", "0.5"), True),
    "A4": ("agnostic", ("1.5", "2.0", "0.5", "0.75"), True),
    "P4": ("per_class", ("1.5", "2.0", "0.5", "0.75"), True),
    "L1": ("agnostic", ("1.5",), True),
    "S1": ("agnostic", ("0.5",), True),
    "NB2": ("agnostic", ("1.5", "0.5"), False),
}
FORMS = {"elem": "elements", "l2": "l2norm"}
PRECISIONS = [(torch.float64, 1e-9, 1e-6), (torch.float32, 2e-6, 2e-6)]  # gradients are stored in float32


def tensor(array, dtype=None):
    return torch.from_numpy(np.asarray(array)).to(dtype)


def present_classes(label_BK):
    """(B, P) channels of the classes of each image, padded with -1."""
    rows = [np.flatnonzero(label) for label in label_BK]
    width = max(1, *(len(row) for row in rows))
    return torch.tensor([[*row.tolist(), *[-1] * (width - len(row))] for row in rows])


def packed_weights(weight_KD, present_BP):
    return weight_KD[present_BP.clamp(min=0)] * (present_BP >= 0)[..., None]


class Golden:
    """The inputs of one file, and the regions of a configuration."""

    def __init__(self, arrays, dtype=torch.float64):
        self.arrays, self.dtype = arrays, dtype
        self.present = present_classes(arrays["labels"])
        self.weight = packed_weights(tensor(arrays["cls_weight"], dtype), self.present)
        self.valid = tensor(arrays["valid"])
        self.size = self.valid.shape[1:]
        self.segmented = segmented_class(tensor(arrays["dec_logits"], dtype), self.present, self.valid)

    def tokens(self, scale):
        return tensor(self.arrays[f"F_{scale}"], self.dtype)

    def cams(self, scale):
        return scale_cams(self.tokens(scale), self.weight, self.size)

    def threshold(self, scale, classes):
        return thresholds(self.cams(scale), self.segmented, self.present, classes=classes)

    def regions(self, name):
        classes, scales, region_masks = CONFIGURATIONS[name]
        fired = [fires(self.cams(scale), self.threshold(scale, classes)) for scale in scales]
        return reliable_regions(fired, self.valid, region_masks=region_masks)


@pytest.mark.parametrize("case", ["msee_p0", "msee_p1"])
@pytest.mark.parametrize("scale", ["0.5", "1.5"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 2e-6)])  # stored in float32
def test_cams_equal_the_golden_vectors_and_padding_is_zero(golden, case, scale, dtype, tolerance):
    inputs = Golden(golden(case), dtype)
    cams, expected_BKhw = inputs.cams(scale), tensor(inputs.arrays[f"M_{scale}_f64"])
    for image, channels in enumerate(inputs.present):
        for place, channel in enumerate(channels):
            expected = expected_BKhw[image, channel] if channel >= 0 else torch.zeros(inputs.size)
            assert (cams[image, place] - expected).abs().max() <= tolerance


@pytest.mark.parametrize("case", ["msee_p0", "msee_p1"])
def test_segmented_classes_equal_the_golden_vectors(golden, case):
    inputs = Golden(golden(case))
    assert torch.equal(inputs.segmented, tensor(inputs.arrays["S_class"], torch.int64))
    logits = tensor(inputs.arrays["dec_logits"])
    everything = segmented_class(logits, inputs.present, inputs.valid, present_only=False)
    assert torch.equal(everything, tensor(inputs.arrays["S_class_no_absent_mask"], torch.int64))


@pytest.mark.parametrize("case", ["msee_p0", "msee_p1"])
@pytest.mark.parametrize("name", sorted(set(CONFIGURATIONS) - {"NB2"}))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-6)])
def test_thresholds_equal_the_golden_vectors(golden, case, name, dtype, tolerance):
    inputs = Golden(golden(case), dtype)
    classes, scales, _ = CONFIGURATIONS[name]
    for scale, expected in zip(scales, tensor(inputs.arrays[f"{name}_T_f64"]), strict=True):
        got = inputs.threshold(scale, classes).double()
        if classes == "per_class":  # (B, K), absent classes infinite
            full = torch.full_like(expected, torch.inf)
            for image, channels in enumerate(inputs.present):
                for place, channel in enumerate(channels):
                    if channel >= 0:
                        full[image, channel] = got[image, place]
                    else:
                        assert got[image, place] == torch.inf
            got = full
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", ["msee_p0", "msee_p1"])
@pytest.mark.parametrize("name", sorted(set(CONFIGURATIONS) - {"NB2"}))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_regions_equal_the_golden_vectors(golden, case, name, dtype):
    inputs = Golden(golden(case), dtype)
    assert torch.equal(inputs.regions(name), tensor(inputs.arrays[f"{name}_B"]))


@pytest.mark.parametrize("case", ["msee_p0", "msee_p1"])
@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize(("dtype", "value", "gradient"), PRECISIONS)
def test_losses_and_their_gradients_equal_the_golden_vectors(golden, case, name, dtype, value, gradient):
    inputs = Golden(golden(case), dtype)
    regions, compared = inputs.regions(name), 0
    for short, form in FORMS.items():
        for reduction in ("mean", "sum"):
            key = f"{name}_{short}_{reduction}"
            if f"{key}_loss_f64" not in inputs.arrays:
                continue
            compared += 1
            tokens = inputs.tokens("o").requires_grad_()
            distances = [
                feature_distance(tokens, inputs.tokens(scale), form=form, beta=float(inputs.arrays["beta"]))
                for scale in CONFIGURATIONS[name][1]
            ]
            losses = [region_loss(d, b, reduction=reduction) for d, b in zip(distances, regions, strict=True)]
            per_scale, loss = torch.stack(losses), sum(losses)
            loss.backward()
            expected = tensor(inputs.arrays[f"{key}_per_scale_f64"])
            torch.testing.assert_close(per_scale.double(), expected, rtol=value, atol=value)
            expected = float(inputs.arrays[f"{key}_loss_f64"])
            assert abs(loss.item() - expected) <= value * (1 + abs(expected))
            expected = tensor(inputs.arrays[f"{key}_grad_Fo_f64"], torch.float64)
            assert (tokens.grad.double() - expected).abs().max() <= gradient * expected.abs().max() + 1e-9
    assert compared >= 1


@pytest.mark.parametrize("case", ["msee_p0", "msee_p1"])
@pytest.mark.parametrize(("dtype", "gradient"), [(torch.float64, 1e-6), (torch.float32, 2e-6)])
def test_gradients_to_the_other_scales_equal_the_golden_vectors(golden, case, dtype, gradient):
    inputs = Golden(golden(case), dtype)
    regions = inputs.regions("A2")
    for scale, region in zip(("1.5", "0.5"), regions, strict=True):
        teacher = inputs.tokens(scale).requires_grad_()
        distance = feature_distance(inputs.tokens("o"), teacher, form="elements", beta=float(inputs.arrays["beta"]))
        region_loss(distance, region).backward()
        expected = tensor(inputs.arrays[f"A2_elem_mean_grad_F{scale}_f64"], torch.float64)
        assert (teacher.grad.double() - expected).abs().max() <= gradient * expected.abs().max() + 1e-9


def test_a_cam_is_normalised_at_its_own_grid_before_it_is_resized():
    # relu(2 F) = 0, 4, 8, 0 over max 8, then the mean of the 2 x 2 grid
    tokens = torch.tensor([-1.0, 2.0, 4.0, 0.0]).view(1, 1, 2, 2)
    cams = scale_cams(tokens, torch.tensor([[[2.0], [0.0]]]), (1, 1))
    assert cams.shape == (1, 2, 1, 1)
    assert cams[0, 0].item() == pytest.approx(1.5 * 8 / (8 + 1e-5) / 4, rel=1e-6) and cams[0, 1].item() == 0


def test_a_class_that_is_nowhere_positive_has_a_map_of_zeros():
    assert not scale_cams(-torch.rand(1, 3, 4, 4), torch.ones(1, 1, 3), (2, 2)).any()


def test_padding_is_no_background_class():
    # Image 0 holds class channels 0 and 2, image 1 only channel 1: its padding must not read the background region.
    present = torch.tensor([[0, 2], [1, -1]])
    segmented = torch.tensor([[[0, 1, 3, 3]], [[0, 2, 2, -1]]])
    cams = torch.tensor([[[0.1, 0.2, 0.3, 0.4], [0.8, 0.7, 0.6, 0.2]], [[0.5, 0.2, 0.4, 0.9], [0.0, 0.0, 0.0, 0.0]]])
    cams = cams.view(2, 2, 1, 4)
    per_class = thresholds(cams, segmented, present, classes="per_class")
    torch.testing.assert_close(per_class, torch.tensor([[0.2, 0.4], [0.3, torch.inf]]))
    agnostic = thresholds(cams, segmented, present, classes="agnostic")
    torch.testing.assert_close(agnostic, torch.tensor([(0.7 + 0.6 + 0.4) / 3, 0.3]))
    assert fires(cams, per_class).tolist() == [[[True, True, True, True]], [[True, False, True, True]]]
    assert fires(cams, agnostic).tolist() == [[[True, True, True, False]], [[True, False, True, True]]]


def test_a_position_at_its_threshold_does_not_fire():
    assert fires(torch.tensor([[[[0.5, 0.75]]]]), torch.tensor([0.5])).tolist() == [[[False, True]]]


@pytest.mark.parametrize("classes", ["agnostic", "per_class"])
def test_an_image_without_segmented_foreground_has_no_region(classes):
    cams, present = torch.rand(2, 1, 3, 3), torch.tensor([[0], [-1]])
    segmented = torch.zeros(2, 3, 3, dtype=torch.int64)
    threshold = thresholds(cams, segmented, present, classes=classes)
    assert (threshold == torch.inf).all() and not fires(cams, threshold).any()


def test_absent_classes_and_positions_outside_the_image_are_not_segmented():
    logits = torch.tensor([0.0, 1.0, 3.0, 2.0]).view(1, 4, 1, 1).expand(2, 4, 1, 2)  # channel 1 (id 2) is largest
    present, valid = torch.tensor([[2], [-1]]), torch.tensor([[[True, False]], [[True, True]]])
    assert segmented_class(logits, present, valid).tolist() == [[[3, -1]], [[0, 0]]]
    assert segmented_class(logits, present, valid, present_only=False).tolist() == [[[2, -1]], [[2, 2]]]


def test_earlier_scales_take_their_positions_from_later_ones():
    first, second, third = (torch.tensor([[row]]).bool() for row in ([1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 1, 1, 1, 0]))
    valid = torch.tensor([[[True, False, True, True, True]]])
    regions = reliable_regions([first, second, third], valid)
    assert regions[:, 0, 0].int().tolist() == [[1, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0]]
    alone = reliable_regions([second], valid)
    assert alone[0, 0, 0].int().tolist() == [1, 0, 1, 0, 0]
    everywhere = reliable_regions([first, second], valid, region_masks=False)
    assert torch.equal(everywhere, torch.stack([valid, valid]))


def test_regions_are_disjoint_and_together_all_that_fires():
    fired, valid = [torch.rand(3, 6, 6) > 0.6 for _ in range(4)], torch.rand(3, 6, 6) > 0.2
    regions = reliable_regions(fired, valid)
    assert regions.sum(dim=0).max() == 1
    assert torch.equal(regions.any(dim=0), torch.stack(fired).any(dim=0) & valid)


def test_distances_by_hand_on_both_sides_of_beta():
    tokens = torch.tensor([[3.0, 0.6], [4.0, 0.8]]).view(1, 2, 1, 2)  # differences (3, 4) and (0.6, 0.8) from 0
    zeros = torch.zeros(1, 2, 1, 2)
    elements = feature_distance(tokens, zeros, form="elements", beta=2.0)
    torch.testing.assert_close(elements.flatten(), torch.tensor([(2 + 3) / 2, (0.09 + 0.16) / 2]))
    norm = feature_distance(tokens, zeros, form="l2norm", beta=2.0)
    torch.testing.assert_close(norm.flatten(), torch.tensor([5 - 1, 1 / 4]))
    elements = feature_distance(tokens, zeros, form="elements", beta=1.0)
    torch.testing.assert_close(elements.flatten(), torch.tensor([(2.5 + 3.5) / 2, (0.18 + 0.32) / 2]))
    norm = feature_distance(tokens, zeros, form="l2norm", beta=1.0)
    torch.testing.assert_close(norm.flatten(), torch.tensor([5 - 0.5, 1 - 0.5]))


def test_a_larger_scale_is_averaged_onto_the_grid():
    scale = torch.arange(16.0).view(1, 1, 4, 4)
    means = torch.tensor([[2.5, 4.5], [10.5, 12.5]]).view(1, 1, 2, 2)
    assert not feature_distance(means, scale, form="elements", beta=1.0).any()


@pytest.mark.parametrize("form", ["elements", "l2norm"])
def test_equal_features_have_no_distance_and_a_finite_gradient(form):
    tokens = torch.randn(1, 4, 2, 2, requires_grad=True)
    distance = feature_distance(tokens, tokens.detach().clone(), form=form, beta=2.0)
    distance.sum().backward()
    assert not distance.any() and not tokens.grad.any()


def test_a_beta_of_zero_is_told():
    with pytest.raises(ValueError, match="beta is 0.0; wanted > 0"):
        feature_distance(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), form="elements", beta=0.0)


def test_loss_by_hand_and_of_an_empty_region():
    distance, region = torch.tensor([[[1.0, 2.0]], [[4.0, 8.0]]]), torch.tensor([[[1, 0]], [[1, 1]]]).bool()
    assert region_loss(distance, region).item() == pytest.approx(13 / 4)
    assert region_loss(distance, region, reduction="sum").item() == 13
    assert region_loss(distance, region, group_size=1).item() == pytest.approx((1 / 2 + 12 / 3) / 2)
    assert region_loss(distance, region, reduction="sum", group_size=1).item() == 13 / 2
    assert region_loss(distance, torch.zeros_like(region)).item() == 0
    with pytest.raises(ValueError, match="2 images .* groups of 3"):
        region_loss(distance, region, group_size=3)


def test_the_example_of_the_module_docstring():
    grid, present, everywhere = (2, 2), torch.tensor([[0]]), torch.ones(1, 2, 2, dtype=torch.bool)
    maps = {1.5: [0.9, 0.1, 0.5, 0.0], 0.5: [0.7, 0.8, 0.2, 0.6]}
    segmented = torch.tensor([[[1, 1], [1, 0]]])
    fired = []
    for scale, mean in ((1.5, 0.5), (0.5, 1.7 / 3)):
        cam = torch.tensor(maps[scale]).view(1, 1, *grid)
        at = thresholds(cam, segmented, present, classes="agnostic")
        assert at.item() == pytest.approx(mean)
        fired.append(fires(cam, at))
    assert [fire.int().tolist() for fire in fired] == [[[[1, 0], [0, 0]]], [[[1, 1], [0, 1]]]]
    assert reliable_regions(fired, everywhere).int().tolist() == [[[[1, 0], [0, 0]]], [[[0, 1], [0, 1]]]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", ["agnostic", "per_class"])
def test_a_map_that_is_constant_over_its_region_never_fires_by_rounding(dtype, classes):
    generator, present = torch.Generator().manual_seed(0), torch.tensor([[0]])
    for height, width in ((1, 3), (4, 4), (7, 9), (28, 28)):
        for value in [*torch.rand(20, generator=generator, dtype=dtype).tolist(), 0.9, 0.999999]:
            cam = torch.full((1, 1, height, width), value, dtype=dtype)
            region = torch.ones(1, height, width, dtype=torch.int64)
            assert not fires(cam, thresholds(cam, region, present, classes=classes)).any(), (height, width, value)


def test_a_cell_that_is_clearly_above_the_mean_fires():
    cam = torch.tensor([[[[0.5, 0.5, 0.50001]]]])
    assert fires(cam, torch.tensor([0.5])).tolist() == [[[False, False, True]]]
    assert fires(cam, torch.tensor([[0.5]])).tolist() == [[[False, False, True]]]
