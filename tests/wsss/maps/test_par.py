import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from wsss.maps.par import (
    DILATIONS,
    EPS,
    SHARPNESS,
    neighbour_offsets,
    neighbour_weights,
    neighbours,
    pixel_adaptive_refinement,
    position_weights,
    propagate,
)


@pytest.mark.parametrize("case", ["par_p0", "par_p1"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_refined_maps_equal_the_golden_vectors(golden, case, dtype, tolerance):
    arrays = golden(case)
    image, masks = (torch.from_numpy(arrays[name]).to(dtype) for name in ("image", "masks"))
    for index in range(int(arrays["n_sets"])):
        options = {
            "dilations": tuple(arrays[f"set{index}_dilations"].tolist()),
            "num_iter": int(arrays[f"set{index}_num_iter"]),
        }
        refined = pixel_adaptive_refinement(image, masks, **options).numpy()
        expected = arrays[f"set{index}_out_f64"]
        assert refined.dtype == np.dtype(str(dtype).removeprefix("torch."))
        assert (np.abs(refined - expected) <= tolerance * (1 + np.abs(expected))).all()


def by_the_formula(image_3hw: np.ndarray, masks_Chw: np.ndarray, dilations: tuple[int, ...]) -> np.ndarray:
    """One iteration, pixel by pixel and neighbour by neighbour, in float64."""
    _, height, width = image_3hw.shape
    offsets = [(d * y, d * x) for d in dilations for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x]
    radius = np.array([math.hypot(dy, dx) for dy, dx in offsets])
    position = np.exp(-((radius / (radius.std(ddof=1) + 1e-8) / 0.3) ** 2))
    out = np.zeros_like(masks_Chw)
    for y in range(height):
        for x in range(width):
            at = [(min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)) for dy, dx in offsets]
            colours = np.stack([image_3hw[:, i, j] for i, j in at])
            distance = (colours - image_3hw[:, y, x]) / (colours.std(axis=0, ddof=1) + 1e-8) / 0.3
            colour = np.exp(-(distance**2).mean(axis=1))
            weight = colour / colour.sum() + 0.01 * position / position.sum()
            out[:, y, x] = sum(w * masks_Chw[:, i, j] for w, (i, j) in zip(weight, at, strict=True))
    return out


@pytest.mark.parametrize("dilations", [(1,), (3, 1), DILATIONS])
def test_two_iterations_equal_the_formula_on_an_image_smaller_than_the_farthest_neighbour(dilations):
    image, masks = torch.rand(2, 3, 5, 8, dtype=torch.float64), torch.randn(2, 3, 5, 8, dtype=torch.float64)
    refined = pixel_adaptive_refinement(image, masks, dilations=dilations, num_iter=2)
    for of_image, of_masks, of_refined in zip(image.numpy(), masks.numpy(), refined.numpy(), strict=True):
        once = by_the_formula(of_image, of_masks, dilations)
        np.testing.assert_allclose(of_refined, by_the_formula(of_image, once, dilations), rtol=1e-10)


def test_on_a_constant_image_every_neighbour_counts_alike_but_for_its_distance():
    # radii 1 and sqrt 2, four each: variance (sqrt 2 - 1)^2 / 4 * 8 / 7
    variance = (math.sqrt(2) - 1) ** 2 * 2 / 7
    near, far = math.exp(-1 / variance / 0.09), math.exp(-2 / variance / 0.09)
    weight = neighbour_weights(torch.full((1, 3, 3, 3), 0.3, dtype=torch.float64), (1,))
    diagonal, straight = weight[0, 0], weight[0, 1]  # (-1, -1) and (-1, 0)
    assert straight[1, 1].item() == pytest.approx(1 / 8 + 0.01 * near / (4 * near + 4 * far), abs=1e-9)
    assert diagonal[1, 1].item() == pytest.approx(1 / 8 + 0.01 * far / (4 * near + 4 * far), abs=1e-9)


def test_the_border_is_repeated_and_the_order_is_row_by_row():
    x = torch.arange(6.0).view(1, 1, 2, 3)
    assert neighbour_offsets((2,)) == [(-2, -2), (-2, 0), (-2, 2), (0, -2), (0, 2), (2, -2), (2, 0), (2, 2)]
    assert neighbour_offsets((1, 2))[8:] == neighbour_offsets((2,))
    up_left, up, *_, down_right = neighbours(x, (1,))
    assert up_left.flatten().tolist() == [0, 0, 1, 0, 0, 1]
    assert up.flatten().tolist() == [0, 1, 2, 0, 1, 2]
    assert down_right.flatten().tolist() == [4, 5, 5, 4, 5, 5]


def test_the_pixel_itself_is_not_part_of_its_sum():
    spike = torch.zeros(1, 1, 7, 7)
    spike[0, 0, 3, 3] = 1
    once = pixel_adaptive_refinement(torch.rand(1, 3, 7, 7), spike, dilations=(1,), num_iter=1)
    assert once[0, 0, 3, 3] == 0
    assert (once > 0).sum() == 8 and (once[0, 0, 2:5, 2:5] > 0).sum() == 8


@pytest.mark.parametrize("num_iter", [0, 1, 10])
def test_weights_sum_to_one_and_a_hundredth_so_a_constant_map_grows_by_that(num_iter):
    image = torch.rand(2, 3, 9, 11)
    assert torch.allclose(neighbour_weights(image).sum(1), torch.tensor(1.01))
    refined = pixel_adaptive_refinement(image, torch.full((2, 2, 9, 11), 0.5), num_iter=num_iter)
    torch.testing.assert_close(refined, torch.full((2, 2, 9, 11), 0.5 * 1.01**num_iter))


def test_a_flat_image_gives_finite_weights():
    image = torch.zeros(1, 3, 6, 6)
    image[..., 3:] = 1  # standard deviation 0 away from the edge
    for dtype in (torch.float32, torch.float64):
        assert torch.isfinite(neighbour_weights(image.to(dtype), (1,))).all()


def test_a_map_stays_on_its_side_of_an_edge():
    image, masks = torch.zeros(1, 3, 12, 12), torch.zeros(1, 1, 12, 12)
    image[..., 6:], masks[..., 4:6, 4] = 1, 1
    refined = pixel_adaptive_refinement(image, masks, dilations=(1, 2))
    assert refined[..., :6].sum() > 100 * refined[..., 6:].sum() > 0  # the position term leaks a little


def test_maps_share_the_weights_but_not_their_values():
    image, masks = torch.rand(2, 3, 10, 12), torch.randn(2, 4, 10, 12)
    together = pixel_adaptive_refinement(image, masks)
    weight = neighbour_weights(image)
    for channel in range(4):
        torch.testing.assert_close(together[:, channel : channel + 1], propagate(masks[:, [channel]], weight))
    torch.testing.assert_close(together[:1], pixel_adaptive_refinement(image[:1], masks[:1]))


def test_maps_of_another_size_are_resized_corner_on_corner():
    image, masks = torch.rand(1, 3, 9, 7), torch.rand(1, 2, 3, 4)
    resized = F.interpolate(masks, size=(9, 7), mode="bilinear", align_corners=True)
    assert torch.equal(pixel_adaptive_refinement(image, masks), pixel_adaptive_refinement(image, resized))
    assert resized[0, 0, 0, -1] == masks[0, 0, 0, -1]


def test_gradients_reach_the_maps_and_are_those_of_a_linear_function():
    image, masks = torch.rand(1, 3, 4, 5, dtype=torch.float64), torch.randn(1, 2, 4, 5, dtype=torch.float64)
    masks.requires_grad_()

    def refine(masks: torch.Tensor) -> torch.Tensor:
        return pixel_adaptive_refinement(image, masks, dilations=(1, 2), num_iter=2)

    assert torch.autograd.gradcheck(refine, (masks,))


def test_no_gradient_reaches_the_image():
    image = torch.rand(1, 3, 6, 6, requires_grad=True)
    assert not pixel_adaptive_refinement(image, torch.rand(1, 2, 6, 6)).requires_grad


def test_neither_image_nor_maps_are_changed():
    image, masks = torch.rand(1, 3, 6, 6), torch.rand(1, 2, 6, 6)
    before = image.clone(), masks.clone()
    refined = pixel_adaptive_refinement(image, masks, num_iter=0)
    pixel_adaptive_refinement(image, masks)
    assert torch.equal(image, before[0]) and torch.equal(masks, before[1]) and torch.equal(refined, masks)


def test_weights_made_in_inference_mode_do_not_keep_training_from_its_gradient():
    image, masks = torch.rand(1, 3, 6, 6), torch.rand(1, 1, 6, 6, requires_grad=True)
    with torch.inference_mode():
        pixel_adaptive_refinement(image, masks)
    pixel_adaptive_refinement(image, masks).sum().backward()
    assert masks.grad is not None


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton compiles here")
@pytest.mark.parametrize("dilations", [DILATIONS, (1, 3)])
def test_the_kernels_of_our_own_refine_as_the_operators_of_torch(dilations):
    par_triton = pytest.importorskip("wsss.maps.par_triton")
    image, masks = torch.rand(2, 3, 9, 11), torch.rand(2, 5, 9, 11)
    weight = neighbour_weights(image, dilations)
    position = position_weights(dilations, torch.float32, image.device).flatten()
    ours = par_triton.triton_weights(image, position, list(dilations), SHARPNESS, EPS)
    torch.testing.assert_close(ours, weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        par_triton.triton_propagate(masks, weight, list(dilations), 3), propagate(masks, weight, dilations, 3)
    )


def test_half_precision_is_refined_in_float32():
    image, masks = torch.rand(1, 3, 6, 6).bfloat16(), torch.rand(1, 1, 6, 6).bfloat16()
    refined = pixel_adaptive_refinement(image, masks)
    assert torch.equal(refined, pixel_adaptive_refinement(image.float(), masks.float()))


def test_mistakes_are_named():
    image = torch.rand(1, 3, 4, 4)
    for dilations in ((), (0, 1), (1, 4097)):
        with pytest.raises(ValueError, match=r"dilations are .*; wanted one or more distances"):
            neighbour_weights(image, dilations)
    for wrong in (image[0], image[:, :1], image.byte()):
        with pytest.raises(ValueError, match=r"wanted \(B, 3, h, w\) RGB"):
            neighbour_weights(wrong)
    with pytest.raises(ValueError, match=r"weights \(1, 8, 4, 4\) for maps .*; wanted \(1, 48, 4, 4\)"):
        propagate(torch.rand(1, 2, 4, 4), neighbour_weights(image, (1,)))
    for num_iter in (-1, 1001):
        with pytest.raises(ValueError, match=f"num_iter is {num_iter}; wanted 0 to 1000"):
            pixel_adaptive_refinement(image, torch.rand(1, 2, 4, 4), num_iter=num_iter)
