import numpy as np
import pytest
import torch

from wsss.refine import REFINERS, takes_cue
from wsss.refine.crf import (
    add_background,
    dense_crf,
    left_out_mass,
    mean_field,
    mean_field_of_proposed,
    proposed_classes,
)
from wsss.refine.threshold import mask_of
from wsss.refine.walk import AffinityCue
from wsss.tensors import resize

NAMES = ("iterations", "gaussian_sxy", "gaussian_weight", "bilateral_sxy", "bilateral_srgb", "bilateral_weight")


def arguments(params):
    return {**dict(zip(NAMES, params.tolist(), strict=True)), "iterations": int(params[0])}


@pytest.mark.parametrize("case", ["crf_p0", "crf_p1"])
def test_marginals_equal_the_golden_vectors(golden, case):
    """Those of pydensecrf; exact ones: test_exact_crf.py."""
    pytest.importorskip("pydensecrf")
    arrays = golden(case)
    for name in ("toco_seg", "toco_cam"):
        marginals = mean_field(arrays["image"], arrays["probs"], **arguments(arrays[f"{name}_params"]))
        np.testing.assert_allclose(marginals, arrays[f"{name}_Q"], atol=1e-4)
        exact = arrays[f"{name}_Q_exact_f64"]
        assert np.abs(marginals - exact).mean() <= 0.03
        assert (marginals.argmax(0) == exact.argmax(0)).mean() >= 0.97


def test_background_probability_equals_the_golden_vectors(golden):
    arrays = golden("crf_p1")
    for gamma in (1, 2, 16, 48):
        probs = add_background(arrays["cam"][None], gamma)
        np.testing.assert_allclose(probs[1], arrays[f"thesis_pfg_gamma{gamma}_f64"], atol=1e-6)
        np.testing.assert_allclose(probs.sum(0), 1, atol=1e-9)


def test_the_papers_crf_equals_the_golden_vectors(golden):
    pytest.importorskip("pydensecrf")
    arrays = golden("crf_p1")
    marginals = dense_crf(arrays["image"], arrays["cam"][None])
    np.testing.assert_allclose(marginals[0], arrays["thesis_Q_gamma16"][1], atol=1e-4)
    mask = mask_of(marginals, [1], threshold=0.3)
    assert (mask == arrays["thesis_mask_gamma16"]).mean() > 0.9999


def test_background_by_hand():
    # c = 0.5, gamma 2: b = 0.25, so p = 0.5 / 0.75
    assert add_background(np.full((1, 1, 1), 0.5), 2.0)[1].item() == pytest.approx(2 / 3)
    # several classes: the strongest sets the background
    probs = add_background(np.array([[[0.5]], [[0.25]]]), 1.0).ravel()
    np.testing.assert_allclose(probs, np.array([0.5, 0.5, 0.25]) / 1.25)
    # a score that rounding put above 1 leaves nothing to the background
    assert add_background(np.full((1, 1, 1), 1.001), 0.5).ravel().tolist() == [0, 1]
    with pytest.raises(ValueError, match="gamma is 0; wanted above 0"):
        add_background(np.full((1, 1, 1), 0.5), 0)


def test_a_constant_image_keeps_a_uniform_map_uniform():
    image = np.full((12, 15, 3), 90, dtype=np.uint8)
    refined = dense_crf(image, np.full((1, 12, 15), 0.4, dtype=np.float32), gamma=1.0)
    assert refined.std() < 1e-3


def test_the_crf_follows_an_edge_of_the_image():
    image = np.zeros((20, 20, 3), dtype=np.uint8)
    image[:, 10:] = 220
    scores = np.full((1, 20, 20), 0.05, dtype=np.float32)
    scores[:, :, 8:16] = 0.7  # crosses the edge on the left, ends early on the right
    mask = mask_of(dense_crf(image, scores, gamma=2.0), [1], threshold=0.5)
    assert mask[:, 11:16].all() and not mask[:, :9].any()


def test_proposed_are_background_the_winners_of_any_pixel_and_who_reaches_the_floor():
    probs = np.zeros((6, 1, 4))
    probs[1, 0] = [0.9, 0.5, 0.5, 0.35]
    probs[2, 0] = [0.1, 0.5, 0.0, 0.0]  # reaches the floor and never wins
    probs[4, 0] = [0.0, 0.0, 0.5, 0.25]
    probs[5, 0] = [0.0, 0.0, 0.0, 0.4]  # wins a pixel
    assert proposed_classes(probs, floor=0.45) == [0, 1, 2, 4, 5]
    assert proposed_classes(probs, floor=0.55) == [0, 1, 5]
    assert proposed_classes(probs, floor=0.0) == list(range(6))
    assert proposed_classes(probs.astype(np.float32)[:2]) == [0, 1]


@pytest.mark.parametrize("extra", [0, 16])
def test_the_crf_of_proposed_classes_is_near_the_full_one_and_puts_the_others_mass_back(golden, extra):
    """Golden probabilities, and the same with 16 further classes that share 2 % of every pixel."""
    arrays = golden("crf_p0")
    rng = np.random.default_rng(0)
    weak = rng.random((extra, *arrays["probs"].shape[1:])) * (0.04 / max(extra, 1))
    probs = np.concatenate([arrays["probs"], weak])
    probs = (probs / probs.sum(0)).astype(np.float32)
    options = arguments(arrays["toco_seg_params"])
    full, few = mean_field(arrays["image"], probs, **options), mean_field_of_proposed(arrays["image"], probs, **options)
    np.testing.assert_allclose(few.sum(0), 1, atol=1e-5)
    assert (few.argmax(0) == full.argmax(0)).mean() >= 0.999
    dropped = sorted(set(range(len(probs))) - set(proposed_classes(probs)))
    assert np.abs(few - full).sum(0).mean() / 2 < probs[dropped].sum(0).mean() + 0.01
    assert set(range(5, 5 + extra)) <= set(dropped)
    np.testing.assert_array_equal(few[dropped], probs[dropped])


def soft_scene(rng):
    """A small image of blurred colours, and unsure probabilities of some classes, a few of them weak everywhere."""
    classes, height, width = rng.integers(4, 22), rng.integers(3, 6), rng.integers(3, 6)
    size = (8 * int(height), 8 * int(width))
    logits = rng.normal(0, rng.uniform(0.3, 3), (classes, height, width)) - rng.uniform(0, 4, classes)[:, None, None]
    probs_CHW = resize(torch.from_numpy(logits)[None], size)[0].softmax(0).float().numpy()
    colours = resize(torch.from_numpy(rng.uniform(0, 255, (1, 3, height, width))), size)[0].permute(1, 2, 0).numpy()
    return (colours + rng.normal(0, 10, colours.shape)).clip(0, 255).astype(np.uint8), probs_CHW


def test_how_far_the_crf_of_proposed_classes_is_from_the_full_one_depends_on_the_mass_that_it_leaves_out(golden):
    """The labels of soft scenes differ at far more than one pixel in 1,000."""
    rng, options = np.random.default_rng(0), arguments(golden("crf_p0")["toco_seg_params"])
    differing = []
    for _ in range(60):
        image_HW3, probs_CHW = soft_scene(rng)
        mass = left_out_mass(probs_CHW, proposed_classes(probs_CHW))
        full, few = mean_field(image_HW3, probs_CHW, **options), mean_field_of_proposed(image_HW3, probs_CHW, **options)
        differing.append((full.argmax(0) != few.argmax(0)).mean())
        assert differing[-1] < mass / 2 + 0.002
        assert np.abs(full - few).sum(0).mean() / 2 < 2 * mass + 0.01
    assert max(differing) > 0.01


def test_the_mass_that_is_left_out_by_hand():
    probs = np.array([[[0.5, 0.7]], [[0.3, 0.3]], [[0.2, 0.0]]], dtype=np.float32)
    assert left_out_mass(probs, [0, 1]) == pytest.approx(0.1) == left_out_mass(torch.from_numpy(probs), [0, 1])
    assert left_out_mass(probs, [0, 1, 2]) == pytest.approx(0, abs=1e-6)


def test_where_only_background_is_proposed_no_crf_is_run():
    probs = np.full((3, 4, 5), 0.02, dtype=np.float32)
    probs[0] = 0.96
    few = mean_field_of_proposed(
        np.zeros((4, 5, 3), dtype=np.uint8), probs, **{**dict.fromkeys(NAMES, 1.0), "iterations": 1}
    )
    np.testing.assert_allclose(few, probs)


CUES = {
    "sam": np.ones((2, 4, 5), dtype=bool),
    "clip": np.zeros((0, 2, 2), dtype=np.float32),
    "concept": np.zeros((0, 2, 2), dtype=np.float32),
    "walk": AffinityCue(np.ones((4, 1), dtype=np.float16), (2, 3), 2),
}


@pytest.mark.parametrize("name", REFINERS.ours)
def test_no_class_stays_no_class(name):
    cue = [CUES[name]] if takes_cue(name) else []
    refined = REFINERS[name](np.zeros((4, 5, 3), dtype=np.uint8), np.zeros((0, 4, 5), dtype=np.float32), *cue)
    assert refined.shape == (0, 4, 5)
    assert np.array_equal(mask_of(refined, [], threshold=0.3), np.zeros((4, 5)))


def test_bad_input_is_refused_before_the_library_crashes():
    image, probs = np.zeros((4, 5, 3), dtype=np.uint8), np.full((2, 4, 5), 0.5)
    good = {**dict.fromkeys(NAMES, 1.0), "iterations": 1}
    columns_first = mean_field(np.asfortranarray(image), np.asfortranarray(probs), **good)
    assert np.array_equal(mean_field(image, probs, **good), columns_first)
    narrow = r"_s(xy|rgb) is \S+; wanted 0.01 or more"
    for option, value, told in (
        ("gaussian_sxy", 0.0, narrow),  # this and the next three would be segmentation faults
        ("gaussian_sxy", 1e-9, narrow),
        ("bilateral_sxy", 1e-9, narrow),
        ("bilateral_srgb", 1e-9, narrow),
        ("iterations", 0, r"iterations is 0; wanted 1 to 1000 \(5 to 10 are usual\)"),
        ("iterations", 1001, "iterations is 1001; wanted 1 to 1000"),
        ("gaussian_weight", -1.0, r"gaussian_weight is -1.0; wanted 0 to 1e\+06, where 0 leaves its kernel out"),
        ("bilateral_weight", 1e300, "bilateral_weight is 1e"),
    ):
        with pytest.raises(ValueError, match=told):
            mean_field(image, probs, **{**good, option: value})
    with pytest.raises(ValueError, match="1 probabilities are not finite"):
        mean_field(image, np.where(np.arange(40).reshape(2, 4, 5) == 3, np.nan, probs), **good)
    with pytest.raises(ValueError, match=r"\(4, 5, 3\) uint8 and probabilities \(2, 5, 4\)"):
        mean_field(image, probs.transpose(0, 2, 1), **good)
    with pytest.raises(ValueError, match="float64"):
        mean_field(image.astype(float), probs, **good)


@pytest.mark.parametrize("by", ["lattice", "exact"])
def test_the_bounds_of_a_mean_field_themselves_are_taken(by):
    if by == "lattice":
        pytest.importorskip("pydensecrf")
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    probs = np.random.default_rng(1).dirichlet([1, 1], (4, 5)).transpose(2, 0, 1)
    widths, weights = ("gaussian_sxy", "bilateral_sxy", "bilateral_srgb"), ("gaussian_weight", "bilateral_weight")
    for width, weight, iterations in ((0.01, 1e6, 2), (0.01, 0.0, 1000)):
        numbers = {**dict.fromkeys(widths, width), **dict.fromkeys(weights, weight)}
        found = mean_field(image, probs, iterations=iterations, by=by, **numbers)
        np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)
    np.testing.assert_allclose(found, probs, atol=1e-4)  # without its kernels a field is what it began as


def test_mask_by_hand():
    scores = np.array([[[0.2, 0.3, 0.6]], [[0.1, 0.8, 0.7]]], dtype=np.float64)
    assert mask_of(scores, [4, 9], threshold=0.3).tolist() == [[0, 9, 9]]
    assert mask_of(scores[:1], [4], threshold=0.3).tolist() == [[0, 4, 4]]  # the threshold itself is foreground
    with pytest.raises(ValueError, match="2 score maps for 1 classes"):
        mask_of(scores, [4], threshold=0.3)


def test_what_lies_between_the_thresholds_is_ignored():
    scores = np.array([[[0.9, 0.3, 0.29, 0.1, 0.05]]], dtype=np.float32)
    assert mask_of(scores, [1], threshold=0.3, bg_threshold=0.1).tolist() == [[1, 1, 255, 255, 0]]
    assert mask_of(scores, [1], threshold=0.3).tolist() == [[1, 1, 0, 0, 0]]
