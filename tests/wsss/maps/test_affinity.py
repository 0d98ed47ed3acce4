import numpy as np
import pytest
import torch
from torch import nn

from wsss.losses.affinity import affinity_loss
from wsss.maps.affinity import pair_affinity, pair_indices, pair_offsets, random_walk, transition_matrix
from wsss.models.affinity_net import AffinityHead, build_affinity_net
from wsss.refine.walk import AffinityCue, random_walk_refine

NARROW = {"channels": (8, 8, 16, 16), "layers": (1, 1, 1, 1)}


def test_pairs_equal_the_golden_vectors(golden):
    arrays = golden("affinity_p0")
    from_P, to_OP = pair_indices(16, 16, 5)
    assert np.array_equal(from_P, arrays["ind_from"]) and np.array_equal(to_OP, arrays["ind_to"])
    assert len(pair_offsets(5)) == 34 and len(pair_offsets(4)) == 22
    assert 16 * 16 - len(torch.cat([from_P, to_OP.flatten()]).unique()) == 10  # the bottom corners, as published


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 5e-6)])
def test_affinity_loss_and_gradient_equal_the_golden_vectors(golden, dtype, tolerance):
    arrays = golden("affinity_p0")
    features = torch.from_numpy(arrays["features"]).to(dtype).requires_grad_()
    affinity = pair_affinity(features, 5)
    losses = affinity_loss(affinity, torch.from_numpy(arrays["label"])[None], 5)
    losses["loss"].backward()
    assert np.abs(affinity.detach().numpy() - arrays["aff_f64"]).max() <= tolerance
    for name, key in [("loss", "loss"), ("bg_loss", "loss_bg"), ("fg_loss", "loss_fg"), ("neg_loss", "loss_neg")]:
        assert losses[name].item() == pytest.approx(arrays[f"{key}_f64"].item(), abs=tolerance)
    expected = arrays["grad_features_f64"]
    assert np.abs(features.grad.numpy() - expected).max() <= max(tolerance, 2e-6) * np.abs(expected).max()


def test_the_walk_equals_the_golden_vectors(golden):
    arrays = golden("affinity_p0")
    affinity = torch.from_numpy(arrays["aff_f64"])
    step = transition_matrix(affinity, (16, 16), radius=5, beta=16.0)
    walk = step @ step
    assert walk.shape == (1, 256, 256)
    np.testing.assert_allclose(walk[0].sum(0), arrays["colsum_f64"], atol=1e-9)
    np.testing.assert_allclose(walk[0, arrays["trans_rows_idx"]], arrays["trans_rows_f64"], atol=1e-9)
    cam = torch.from_numpy(arrays["cam"]).double()
    np.testing.assert_allclose(random_walk(cam[None], walk)[0], arrays["cam_rw_f64"], atol=1e-9)
    cue = AffinityCue(arrays["aff_f64"][0], (16, 16), 5)  # one pixel per cell: no resizing, no squaring of T
    refined = random_walk_refine(np.zeros((16, 16, 3), np.uint8), arrays["cam"], cue, rescale=False)
    np.testing.assert_allclose(refined, arrays["cam_rw_f64"], atol=5e-6)


def test_radius_2_by_hand():
    # offsets (0, 1), (1, -1), (1, 0), (1, 1) are closer than 2; a 2 x 3 grid has one position with all of them
    assert pair_offsets(2) == [(0, 1), (1, -1), (1, 0), (1, 1)]
    from_P, to_OP = pair_indices(2, 3, 2)
    assert from_P.tolist() == [1] and to_OP.flatten().tolist() == [2, 3, 4, 5]
    features = torch.tensor([[[[0.0, 0.0, 1.0], [2.0, 0.0, 0.0]], [[0.0, 0.0, 3.0], [0.0, 0.0, 0.0]]]])
    affinity = pair_affinity(features, 2)  # means over two channels: 2, 1, 0, 0
    torch.testing.assert_close(affinity.flatten(), torch.exp(-torch.tensor([2.0, 1.0, 0.0, 0.0])))
    losses = affinity_loss(affinity, torch.tensor([[[7, 1, 1], [0, 255, 1]]]), 2)
    # from 1: class 1 with 2 and 5 (a = e^-2 and 1), background 3 (a = e^-1), 255; the 7 is in no pair
    assert losses["fg_loss"].item() == pytest.approx((2 + 0) / 2, abs=1e-4)
    assert losses["neg_loss"].item() == pytest.approx(-np.log(1 - np.exp(-1)), abs=1e-4)
    assert losses["bg_loss"].item() == 0
    assert losses["loss"].item() == pytest.approx(1 / 4 - np.log(1 - np.exp(-1)) / 2, abs=1e-4)
    walk = transition_matrix(affinity[0], (2, 3), radius=2, beta=2.0)
    # position 2: itself 1 and position 1 by (e^-2)^2
    assert walk[:, 2].tolist() == pytest.approx([0, np.exp(-4) / (1 + np.exp(-4)), 1 / (1 + np.exp(-4)), 0, 0, 0])
    assert walk[:, 0].tolist() == [1, 0, 0, 0, 0, 0]
    walked = random_walk(torch.tensor([[[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]]), walk)
    assert walked[0, 0, 2].item() == pytest.approx(np.exp(-4) / (1 + np.exp(-4)))


def test_the_loss_counts_the_whole_batch():
    features = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    label = torch.tensor([0, 1, 255]).repeat(14)[:40].view(2, 4, 5)
    losses = affinity_loss(pair_affinity(features, 2), label, 2)
    from_P, to_OP = pair_indices(4, 5, 2)
    bg, fg, neg = [], [], []
    for b in range(2):
        for i, to_O in zip(from_P.tolist(), to_OP.T.tolist(), strict=True):
            for j in to_O:
                f, y = features[b].flatten(1), label[b].flatten()
                a = torch.exp(-(f[:, i] - f[:, j]).abs().mean())
                if 255 not in (y[i], y[j]):
                    kind = neg if y[i] != y[j] else fg if y[i] else bg
                    kind.append(-torch.log((1 - a if kind is neg else a) + 1e-5))
    assert min(len(bg), len(fg), len(neg)) > 2
    for name, terms in (("bg_loss", bg), ("fg_loss", fg), ("neg_loss", neg)):
        assert losses[name].item() == pytest.approx(sum(terms).item() / (len(terms) + 1e-5))


@pytest.mark.parametrize("value", [0, 1, 255])
def test_empty_sides_are_zero_and_finite(value):
    features = torch.zeros(1, 4, 5, 9, requires_grad=True)  # every affinity is 1: the worst case of 1 - a
    losses = affinity_loss(pair_affinity(features, 5), torch.full((1, 5, 9), value), 5)
    losses["loss"].backward()
    assert losses["neg_loss"] == 0 and all(loss.isfinite() for loss in losses.values())
    assert features.grad.isfinite().all()
    assert affinity_loss(pair_affinity(features[:0], 5), torch.zeros(0, 5, 9), 5)["loss"] == 0


def test_mixed_precision_features_give_float32():
    assert pair_affinity(torch.randn(1, 4, 5, 9).bfloat16(), 5).dtype == torch.float32


def test_columns_sum_to_one_so_a_walk_keeps_constants():
    affinity = pair_affinity(torch.randn(2, 4, 7, 11), 4)
    walk = transition_matrix(affinity, (7, 11), radius=4, beta=4.0)
    torch.testing.assert_close(walk.sum(dim=1), torch.ones(2, 77))
    constant = torch.full((2, 3, 7, 11), 0.4)
    torch.testing.assert_close(random_walk(constant, walk), constant)
    cam = torch.rand(2, 3, 7, 11)
    torch.testing.assert_close(random_walk(cam, walk)[1], random_walk(cam[1], walk[1]))


def test_without_affinity_nothing_walks():
    walk = transition_matrix(torch.zeros(34, 28 * 24), (32, 32))
    assert torch.equal(walk, torch.eye(1024))


def test_grids_and_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="a 4 x 9 grid has no pairs of radius 5: wanted at least 5 x 9"):
        pair_affinity(torch.zeros(1, 2, 4, 9), 5)
    with pytest.raises(ValueError, match="radius is 1"):
        pair_offsets(1)
    affinity = pair_affinity(torch.zeros(1, 2, 5, 9), 5)
    with pytest.raises(ValueError, match=r"affinities \(1, 34, 1\) for labels \(1, 6, 9\): wanted \(1, 34, 2\)"):
        affinity_loss(affinity, torch.zeros(1, 6, 9), 5)
    with pytest.raises(ValueError, match=r"a grid of 5 x 9 and radius 4: wanted \(22, 6\)"):
        transition_matrix(affinity, (5, 9), radius=4)


def cue_of(half: int) -> AffinityCue:
    """An 8 x 10 grid whose left and right parts do not belong together."""
    features = torch.zeros(1, 1, 8, 10)
    features[..., half:] = 20
    return AffinityCue(pair_affinity(features, 3)[0].half().numpy(), (8, 10), 3)


def test_a_walk_fills_the_side_that_it_starts_on():
    scores = np.zeros((1, 32, 40), dtype=np.float32)
    scores[0, 12:16, 8:12] = 0.5  # one cell of the left half
    image = np.zeros((32, 40, 3), dtype=np.uint8)
    refined = random_walk_refine(image, scores, cue_of(5), log_t=2)
    assert refined.shape == (1, 32, 40) and refined.dtype == np.float32
    assert refined.max() == pytest.approx(1) and refined.min() == 0
    assert refined[0, 12:16, 2:18].min() > 0.05 and not refined[0, :, 22:].any()
    kept = random_walk_refine(image, scores, cue_of(5), log_t=2, rescale=False)
    assert kept.max() < 0.1  # means lower the peak
    np.testing.assert_allclose(kept / kept.max(), refined, atol=1e-6)
    zero = random_walk_refine(image, scores * 0, cue_of(5))
    assert not zero.any()
    assert random_walk_refine(image, scores[:0], cue_of(5)).shape == (0, 32, 40)


@pytest.mark.parametrize("log_t", [0, 3])
def test_a_walk_has_two_to_the_log_t_steps(log_t):
    rng, scores = np.random.default_rng(0), np.random.default_rng(1).random((2, 8, 10), dtype=np.float32)
    cue = AffinityCue(rng.random(cue_of(5).affinity_OP.shape, dtype=np.float32), (8, 10), 3)
    image = np.zeros((8, 10, 3), np.uint8)  # of a pixel per cell
    step = transition_matrix(torch.from_numpy(cue.affinity_OP), (8, 10), radius=3, beta=0.5)
    walk = torch.linalg.matrix_power(step, 2**log_t)
    expected = (scores.reshape(2, 80) @ walk.numpy()).reshape(2, 8, 10)
    found = random_walk_refine(image, scores, cue, beta=0.5, log_t=log_t, rescale=False)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_cell_takes_the_mean_of_its_pixels():
    scores = np.zeros((1, 32, 40), dtype=np.float32)
    scores[0, 13, 9] = 1  # one of the 16 pixels of a cell
    alone = AffinityCue(np.zeros_like(cue_of(5).affinity_OP), (8, 10), 3)
    refined = random_walk_refine(np.zeros((32, 40, 3), np.uint8), scores, alone, rescale=False)
    assert refined.max() == pytest.approx((7 / 8) ** 2 / 16)  # a pixel's middle is 1/8 of a cell from the cell's


def test_a_walk_takes_any_image_size():
    scores = np.random.default_rng(0).random((2, 37, 53), dtype=np.float32)
    refined = random_walk_refine(np.zeros((37, 53, 3), np.uint8), scores, cue_of(4))
    assert refined.shape == (2, 37, 53) and refined.min() >= 0 and (refined.max(axis=(1, 2)) == 1).all()
    constant = random_walk_refine(np.zeros((37, 53, 3), np.uint8), scores * 0 + 0.3, cue_of(4), rescale=False)
    np.testing.assert_allclose(constant, 0.3, atol=1e-6)


def test_bad_cues_are_refused():
    image, scores = np.zeros((16, 20, 3), np.uint8), np.ones((1, 16, 20), np.float32)
    other = AffinityCue(cue_of(5).affinity_OP, (8, 10), 5)
    with pytest.raises(ValueError, match="radius 5: wanted"):
        random_walk_refine(image, scores, other)
    with pytest.raises(ValueError, match=r"scores \(1, 20, 16\)"):
        random_walk_refine(image, scores.transpose(0, 2, 1), cue_of(5))
    for options in ({"beta": 0.0}, {"log_t": -1}, {"log_t": 11}):
        with pytest.raises(ValueError, match=r"beta is \S+, log_t \S+; wanted beta above 0, and log_t from 0 to 10"):
            random_walk_refine(image, scores, cue_of(5), **options)
    broken = AffinityCue(cue_of(5).affinity_OP * np.nan, cue_of(5).size, cue_of(5).radius)
    for of_scores, cue in ((scores * np.nan, cue_of(5)), (scores, broken)):
        with pytest.raises(ValueError, match="scores and affinities must be finite"):
            random_walk_refine(image, of_scores, cue)


@pytest.mark.parametrize(("stride", "size"), [(16, (5, 7)), (32, (5, 7))])
def test_the_network_gives_features_at_16_pixels_per_cell(stride, size):
    net = build_affinity_net(
        1, timm_name="resnet10t", output_stride=stride, widths=(2, 3, 4), affinity_dim=6, timm_options=NARROW
    )
    image = torch.rand(2, 3, 16 * size[0], 16 * size[1])
    features = net(image)
    assert features.shape == (2, 6, *size)
    normalised = (image - net.mean) / net.std
    net.mean.zero_(), net.std.fill_(1)
    torch.testing.assert_close(net(normalised), features)


def test_batch_norm_stays_frozen_in_training():
    net = build_affinity_net(1, timm_name="resnet10t", widths=(2, 3, 4), affinity_dim=6, timm_options=NARROW)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms]
    label = torch.tensor([0, 1, 0]).repeat(15).view(1, 5, 9)
    for _ in range(2):  # also when a trainer calls train() again
        net.train()
        affinity_loss(pair_affinity(net(torch.rand(1, 3, 80, 144)), 5), label, 5)["loss"].backward()
    assert not any(module.training for module in net.eval().modules())
    assert net.train().training and net.backbone.layer1.training and not any(norm.training for norm in norms)
    assert all(torch.equal(norm.running_mean, old) for norm, old in zip(norms, before, strict=True))
    trained = {n for n, p in net.named_parameters() if p.requires_grad}
    assert not any("bn" in name for name in trained)
    assert trained == {n for n, p in net.named_parameters() if p.grad is not None}


def test_the_head_has_the_published_widths():
    head = AffinityHead((512, 1024, 2048))
    assert [(conv.in_channels, conv.out_channels) for conv in head.f8] == [(512, 64), (1024, 128), (2048, 320)]
    assert (head.f9.in_channels, head.f9.out_channels) == (512, 512)
    stages = [torch.randn(1, 512, 8, 8), torch.randn(1, 1024, 4, 4), torch.randn(1, 2048, 4, 4)]
    assert head(stages).shape == (1, 512, 4, 4)
