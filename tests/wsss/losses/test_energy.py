import math

import numpy as np
import pytest
import torch

from wsss.gaussian_sum import FUSED, bilateral_features, gaussian_sum
from wsss.losses.energy import dense_energy, energy_and_slope, nearest

KINDS = [("gate_ref", True, "published"), ("gate_true", True, "true"), ("nogate", False, "published")]
MEAN, DEVIATION = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])


def golden_colours(arrays: dict[str, np.ndarray]) -> torch.Tensor:
    """(B, 3, H, W) in 0..255, float64."""
    return torch.from_numpy(arrays["image_norm"] * DEVIATION[:, None, None] + MEAN[:, None, None])


@pytest.mark.parametrize("case", ["energy_p0", "energy_p1"])
@pytest.mark.parametrize(("kind", "gate", "gradient"), KINDS)
@pytest.mark.parametrize(
    ("dtype", "tolerance", "gradient_tolerance"),
    [(torch.float64, 1e-9, 1e-6), (torch.float32, 1e-5, 2e-5)],  # grad_logits are stored in float32
)
def test_energy_and_gradient_equal_the_golden_vectors(
    golden, case, kind, gate, gradient, dtype, tolerance, gradient_tolerance
):
    arrays = golden(case)
    image = (golden_colours(arrays) / 255).to(dtype)
    logits = torch.from_numpy(arrays["logits"]).to(dtype).requires_grad_()
    label, box = torch.from_numpy(arrays["label"]), torch.from_numpy(arrays["img_box"])
    energy = dense_energy(
        image,
        logits,
        label,
        box,
        sigma_rgb=arrays["sigma_rgb"].item(),
        sigma_xy=arrays["sigma_xy"].item(),
        scale=arrays["scale_factor"].item(),
        gate=gate,
        gradient=gradient,
    )
    energy.backward()
    assert energy.dtype == dtype
    assert energy.item() == pytest.approx(arrays["loss_gate" if gate else "loss_nogate"].item(), rel=tolerance)
    expected = arrays[f"grad_logits_{kind}"]
    assert np.abs(logits.grad.numpy() - expected).max() <= gradient_tolerance * np.abs(expected).max() + 1e-9


@pytest.mark.parametrize("case", ["energy_p0", "energy_p1"])
def test_sums_and_slopes_equal_the_golden_vectors_in_float64(golden, case):
    arrays = golden(case)
    image = nearest(golden_colours(arrays), arrays["core_image"].shape[2:])
    seg, roi, gate = (torch.from_numpy(arrays[name]).double() for name in ("core_seg_f64", "core_roi", "core_gate_f64"))
    inside, gate = roi.flatten(1)[:, None], gate.flatten(1)[:, None]
    features = bilateral_features(image, arrays["sigma_rgb"].item(), arrays["sigma_xy"].item() * 0.5)
    masked = seg.flatten(2) * inside
    for values, name in ((masked, "AS_f64"), (torch.ones_like(inside), "rowsum_f64")):
        sums = gaussian_sum(features, values.transpose(1, 2)).transpose(1, 2)
        np.testing.assert_allclose(sums.flatten(), arrays[name].flatten(), rtol=1e-9)
    for kind, gated, gradient in KINDS:
        energy, slope = energy_and_slope(features, masked, gate if gated else torch.ones_like(gate), gradient)
        assert energy.item() == pytest.approx(arrays["loss_gate" if gated else "loss_nogate"].item(), rel=1e-9)
        np.testing.assert_allclose((slope * inside).flatten(), arrays[f"grad_seg_{kind}"].flatten(), rtol=1e-9)


def test_two_pixels_by_hand():
    # two pixels of one colour, one apart at sigma_xy 1: A = (1, a; a, 1), a = exp(-1/2); S = (3/4, 1/4) and (1/2, 1/2)
    a = math.exp(-0.5)
    image, label = torch.full((1, 3, 1, 2), 0.4, dtype=torch.float64), torch.zeros(1, 1, 2, dtype=torch.int64)
    logits = torch.tensor([[[[math.log(3), 0]], [[0, 0]]]], dtype=torch.float64)
    box, options = torch.tensor([[0, 1, 0, 2]]), {"sigma_xy": 1.0, "scale": 1.0}
    of_first, of_second = 10 / 16 + a / 2, 1 / 2 + a / 2  # S_i . sum_j A_ij S_j
    energy = dense_energy(image, logits, label, box, **options, gate=False)
    assert energy.item() == pytest.approx(-of_first - of_second)
    energy = dense_energy(image, logits, label, box, **options)  # gates 1 - 3/4 and 1 - 1/2
    assert energy.item() == pytest.approx(-of_first / 4 - of_second / 2)
    label[..., 0] = 255
    energy = dense_energy(image, logits, label, box, **options)
    assert energy.item() == pytest.approx(-of_first - of_second / 2)
    energy = dense_energy(image, logits, label, torch.tensor([[0, 1, 0, 1]]), **options)
    assert energy.item() == pytest.approx(-10 / 16)
    image[..., 1] += 30 / 255  # two standard deviations in each of three colours
    further = math.exp(-0.5 - 3 * 2)
    energy = dense_energy(image, logits, label, box, **options)
    assert energy.item() == pytest.approx(-(10 / 16 + further / 2) - (1 / 2 + further / 2) / 2)


def scene(batch: int = 2, classes: int = 3, side: int = 8) -> tuple[torch.Tensor, ...]:
    image = 0.5 + 0.1 * torch.rand(batch, 3, side, side, dtype=torch.float64)
    logits = torch.randn(batch, classes, side // 2, side // 2, dtype=torch.float64, requires_grad=True)
    label = torch.randint(0, classes, (batch, side, side))
    label[:, :3] = 255
    return image, logits, label, torch.tensor([[0, side, 0, side], [2, side, 0, side - 2]])[:batch]


@pytest.mark.parametrize("gradient", ["published", "true"])
def test_without_a_gate_both_gradients_are_the_derivative(gradient):
    image, logits, label, box = scene()
    assert torch.autograd.gradcheck(
        lambda x: dense_energy(image, x, label, box, sigma_xy=8.0, gate=False, gradient=gradient), (logits,)
    )


def test_with_a_constant_gate_only_the_true_gradient_is_the_derivative():
    points, maps, gate = (
        torch.randn(1, 6, 5, dtype=torch.float64),
        torch.rand(1, 2, 6, dtype=torch.float64),
        torch.rand(1, 1, 6).double(),
    )
    maps.requires_grad_()
    kernel = (torch.cdist(points, points).square() / -2).exp()
    (derivative,) = torch.autograd.grad(-(maps * gate * (maps @ kernel)).sum(), maps)
    _, true = energy_and_slope(points, maps.detach(), gate, "true")
    _, published = energy_and_slope(points, maps.detach(), gate, "published")
    torch.testing.assert_close(true, derivative)
    assert (published - derivative).abs().max() > 0.01


def test_the_gradient_follows_what_comes_after_the_energy():
    image, logits, label, box = scene()
    (once,) = torch.autograd.grad(dense_energy(image, logits, label, box), logits)
    (scaled,) = torch.autograd.grad(-3 * dense_energy(image, logits, label, box) ** 2, logits)
    energy = dense_energy(image, logits, label, box).detach()
    torch.testing.assert_close(scaled, -6 * energy * once)


def test_the_energy_is_a_mean_over_images_that_do_not_influence_each_other():
    image, logits, label, box = scene()
    alone = [
        dense_energy(image[b : b + 1], logits[b : b + 1], label[b : b + 1], box[b : b + 1]).item() for b in range(2)
    ]
    assert dense_energy(image, logits, label, box).item() == pytest.approx(sum(alone) / 2)


def test_outside_the_box_nothing_counts_and_an_empty_box_gives_zero():
    image, logits, label, _ = scene(batch=1)
    label[:] = 255
    box = torch.tensor([[0, 8, 0, 4]])
    energy = dense_energy(image, logits, label, box)
    changed = image.clone()
    changed[..., 4:] = 0
    assert dense_energy(changed, logits, label, box).item() == pytest.approx(energy.item(), rel=1e-12)
    nothing = dense_energy(image, logits, label, torch.zeros(1, 4, dtype=torch.int64))
    nothing.backward()
    assert nothing.item() == 0 and logits.grad.abs().max() == 0


def test_what_is_labelled_and_sure_pays_nothing():
    image, _, label, box = scene()
    sure = torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    sure[:, 1] = 1000
    assert dense_energy(image, sure, label.clamp(max=2), box).item() == 0
    assert dense_energy(image, sure, label, box).item() < -1


@pytest.mark.parametrize(("side", "core"), [(8, 4), (7, 3), (5, 2)])
def test_odd_sizes_are_rounded_down_and_rows_are_picked_in_integers(side, core):
    picked = nearest(torch.arange(side)[:, None].expand(side, side), (core, core))
    assert picked[:, 0].tolist() == [i * side // core for i in range(core)]
    image, logits, label, box = (
        torch.rand(1, 3, side, side),
        torch.randn(1, 2, 2, 2),
        torch.zeros(1, side, side),
        torch.tensor([[0, side, 0, side]]),
    )
    energy = dense_energy(image, logits, label, box, gate=False, sigma_rgb=1e6, sigma_xy=1e6)  # A = 1 everywhere
    probs = torch.nn.functional.interpolate(logits, size=(side, side), mode="bilinear").softmax(1)
    sums = torch.nn.functional.interpolate(probs, size=(core, core), mode="bilinear").sum((2, 3))
    assert energy.item() == pytest.approx(-sums.square().sum().item(), rel=1e-5)


def test_pixels_of_rows_and_columns_are_told_apart():
    features = bilateral_features(torch.full((1, 3, 2, 3), 6.0), 2.0, 10.0)
    assert features[0, :, :2].mul(10).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert (features[0, :, 2:] == 3).all()


@pytest.mark.parametrize("fused", [True, False])
def test_half_precision_logits_under_autocast_give_the_float32_energy(fused, monkeypatch):
    if not fused:
        monkeypatch.delitem(FUSED, ("cpu", torch.float32))
    image, logits, label, box = scene()
    image, logits = image.bfloat16(), logits.detach().bfloat16()
    expected = dense_energy(image.float(), logits.float(), label, box)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        energy = dense_energy(image, logits, label, box)
    assert energy.dtype == torch.float32 and torch.equal(energy, expected)


def test_on_a_grid_the_gradient_is_nearly_that_of_every_pixel_and_an_image_does_not_change_another(monkeypatch):
    """Smooth colours, then with noise: more colours, and more cells."""
    torch.manual_seed(0)
    image = torch.nn.functional.interpolate(torch.rand(2, 3, 8, 8), (64, 64), mode="bilinear")
    image[1] = (image[1] + 0.05 * torch.randn(3, 64, 64)).clamp(0, 1)
    logits = (2 * torch.randn(2, 5, 8, 8)).requires_grad_()
    label, box = torch.full((2, 64, 64), 255), torch.tensor([[0, 64, 0, 64], [3, 60, 0, 41]])
    cells = []
    monkeypatch.setattr("wsss.gaussian_sum.gaussian_sum", lambda f, v: cells.append(f.shape[1]) or gaussian_sum(f, v))

    def energy(grid, of=slice(None)):
        value = dense_energy(image[of], logits[of], label[of], box[of], grid=grid)
        return value, torch.autograd.grad(value, logits)[0][of]

    (exact, slope), (near, near_slope) = energy(0), energy(1)
    assert cells[0] < cells[1] < 32 * 32
    assert near.item() == pytest.approx(exact.item(), rel=0.03) and near.item() != exact.item()
    for n in range(2):
        assert torch.nn.functional.cosine_similarity(near_slope[n].flatten(), slope[n].flatten(), dim=0) > 0.999
        alone = energy(1, slice(n, n + 1))[1]
        torch.testing.assert_close(alone[0] / 2, near_slope[n])
    cells.clear()
    image[0] = 0.5  # one colour: cells of 5 and 10 pixels, a tenth and a fifth of sigma_xy in the core
    energy(1, slice(1)), energy(2, slice(1))
    assert cells == [7 * 7, 4 * 4]


def test_mistakes_are_named():
    image, logits, label, box = scene()
    for options in ({"sigma_rgb": 0.0}, {"sigma_xy": -1.0}, {"scale": 0.0}, {"scale": 2.0}):
        with pytest.raises(ValueError, match="wanted all > 0 and scale <= 1"):
            dense_energy(image, logits, label, box, **options)
    for wrong in ((image[:, :1], logits, label), (image, logits[:1], label), (image, logits, label[:, :4])):
        with pytest.raises(ValueError, match=r"wanted \(B, 3, H, W\), \(B, C, h, w\), \(B, H, W\)"):
            dense_energy(*wrong, box)
    for grid in (-1.0, 0.05, math.nan):
        with pytest.raises(ValueError, match="wanted 0 for every pixel, or 0.1 or more"):
            dense_energy(image, logits, label, box, grid=grid)
    with pytest.raises(ValueError, match="nothing is left of 8 x 8 pixels at scale 0.1"):
        dense_energy(image, logits, label, box, scale=0.1)
