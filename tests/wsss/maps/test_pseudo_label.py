import numpy as np
import pytest
import torch

from wsss.maps.boxes import inside_box, valid_tokens, whole_box
from wsss.maps.pseudo_label import certainty, class_ids, refined_label, scores_with_background, seed_label

WHOLE = torch.tensor([[0, 1, 0, 4]])


def packed(cam_BKHW: np.ndarray, label_BK: np.ndarray, extra: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(cam_BPHW, present_BP) of maps of all classes, with `extra` more padded channels than are needed."""
    cam_BKHW, label_BK = torch.from_numpy(cam_BKHW), torch.from_numpy(label_BK)
    width = max(1, int(label_BK.sum(1).max())) + extra
    present = torch.full((len(cam_BKHW), width), -1)
    cams = torch.zeros(len(cam_BKHW), width, *cam_BKHW.shape[2:])
    for b, of_image in enumerate(label_BK):
        channels = of_image.nonzero().flatten()
        present[b, : len(channels)], cams[b, : len(channels)] = channels, cam_BKHW[b, channels]
    return cams, present


def row(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(1, 1, 1, -1)


@pytest.mark.parametrize("case", ["camlabel_p0", "camlabel_p1"])
@pytest.mark.parametrize("extra", [0, 2])
def test_seed_labels_equal_the_golden_vectors(golden, case, extra):
    arrays = golden(case)
    cam, present = packed(arrays["cam"], arrays["cls_label"], extra)
    box = torch.from_numpy(arrays["img_box"])
    bkg, high, low = (arrays[f"thr_{name}"].item() for name in ("bkg", "high", "low"))
    mid = seed_label(cam, present, bg_threshold=low, fg_threshold=high, box_B4=box)
    assert mid.dtype == torch.int64 and np.array_equal(mid, arrays["pseudo_mid"])
    nomid = seed_label(cam, present, bg_threshold=bkg, fg_threshold=bkg, box_B4=box)
    assert np.array_equal(nomid, arrays["pseudo_nomid"])
    assert np.array_equal(seed_label(cam, present, bg_threshold=bkg, fg_threshold=bkg), arrays["pseudo_eval"])
    sure = certainty(cam, bg_threshold=low, fg_threshold=high)
    assert sure.dtype == torch.int64 and np.array_equal(sure, arrays["roi_mask"])


@pytest.mark.parametrize("case", ["refine_p0", "refine_p1"])
@pytest.mark.parametrize("extra", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_refined_labels_equal_the_golden_vectors(golden, case, extra, dtype):
    arrays = golden(case)
    cam, present = packed(arrays["cam"], arrays["cls_label"], extra)
    label = refined_label(
        torch.from_numpy(arrays["image"]).to(dtype),
        cam.to(dtype),
        present,
        torch.from_numpy(arrays["img_box"]),
        bg_threshold=arrays["thr_low"].item(),
        fg_threshold=arrays["thr_high"].item(),
        down_scale=int(arrays["down_scale"]),
    )
    stable = arrays["margin_f64"] > 1e-5
    assert stable.mean() > 0.99 and label.dtype == torch.int64
    assert np.array_equal(label.numpy()[stable], arrays["label"][stable])


def test_seed_label_by_hand():
    cam = torch.cat([row(0.1, 0.6, 0.9, 0.8), row(0.2, 0.3, 0.1, 0.95)], dim=1)
    label = seed_label(cam, torch.tensor([[2, 7]]), bg_threshold=0.25, fg_threshold=0.7)
    assert label.tolist() == [[[0, 255, 3, 8]]]
    box = torch.tensor([[0, 1, 1, 3]])
    assert seed_label(cam, torch.tensor([[2, 7]]), bg_threshold=0.25, fg_threshold=0.7, box_B4=box).tolist() == [
        [[255, 255, 3, 255]]
    ]


@pytest.mark.parametrize("threshold", [0.25, 0.3, 0.45, 0.7])  # float32 holds 0.25, rounds 0.3 up, the others down
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_cam_equal_to_the_float32_threshold_is_not_above_it(threshold, dtype):
    at = np.float32(threshold)
    cam = row(np.nextafter(at, np.float32(0)), at, np.nextafter(at, np.float32(1)), 0).to(dtype)
    present = torch.tensor([[0]])
    assert seed_label(cam, present, bg_threshold=threshold, fg_threshold=threshold).tolist() == [[[0, 0, 1, 0]]]
    assert seed_label(cam, present, bg_threshold=0.1, fg_threshold=threshold).tolist() == [[[255, 255, 1, 0]]]
    assert certainty(cam, bg_threshold=0.1, fg_threshold=threshold).tolist() == [[[1, 2, 2, 0]]]
    assert certainty(cam, bg_threshold=threshold, fg_threshold=0.99).tolist() == [[[0, 0, 1, 0]]]
    double = torch.full((1, 1, 1, 1), threshold, dtype=torch.float64)  # its own float32 rounding is what counts
    assert seed_label(double, present, bg_threshold=threshold, fg_threshold=threshold).tolist() == [[[0]]]
    assert certainty(double, bg_threshold=0.1, fg_threshold=threshold).tolist() == [[[2]]]


def test_an_image_without_classes_is_background_inside_its_box():
    image, cam, present = torch.rand(2, 3, 8, 8), torch.zeros(2, 2, 8, 8), torch.tensor([[-1, -1], [4, -1]])
    cam[1, 0] = 1
    box = torch.tensor([[0, 4, 0, 8], [0, 8, 0, 8]])
    expected = torch.zeros(2, 8, 8, dtype=torch.int64)
    expected[0, 4:], expected[1] = 255, 5
    for thresholds in ({"bg_threshold": 0.25, "fg_threshold": 0.7}, {"bg_threshold": 0.0, "fg_threshold": 0.0}):
        assert torch.equal(seed_label(cam, present, box_B4=box, **thresholds), expected)
        assert torch.equal(refined_label(image, cam, present, box, **thresholds), expected)


def test_a_constant_cam_is_decided_by_its_rank_among_the_thresholds():
    image, present, box = (
        torch.rand(3, 3, 6, 10),
        torch.tensor([[3], [3], [3]]),
        torch.tensor([[0, 6, 0, 10]]).repeat(3, 1),
    )
    cam = torch.tensor([0.2, 0.5, 0.9]).view(3, 1, 1, 1).expand(3, 1, 6, 10)
    label = refined_label(image, cam, present, box, bg_threshold=0.25, fg_threshold=0.7)
    assert label.flatten(1).unique(dim=1).tolist() == [[0], [255], [4]]


def test_refinement_carries_a_seed_over_its_object_and_stops_at_the_edge():
    image, cam = torch.zeros(1, 3, 32, 32), torch.full((1, 1, 32, 32), 0.3)
    image[..., :16], cam[..., :16] = 1, 0.45  # below both thresholds without its neighbours
    cam[..., 4:28, 2:14] = 1  # the middle of the left half
    label = refined_label(
        image, cam, torch.tensor([[0]]), torch.tensor([[0, 32, 0, 32]]), bg_threshold=0.48, fg_threshold=0.5
    )
    assert (label[..., :14] == 1).all() and (label[..., 18:] == 0).all()


def test_padding_changes_no_label():
    image, box = torch.rand(2, 3, 12, 9), torch.tensor([[0, 12, 0, 9], [2, 9, 3, 7]])
    cam, present = torch.rand(2, 2, 12, 9), torch.tensor([[0, 4], [1, 2]])
    more = torch.cat([cam, torch.zeros(2, 3, 12, 9)], dim=1), torch.cat([present, torch.full((2, 3), -1)], dim=1)
    thresholds = {"bg_threshold": 0.3, "fg_threshold": 0.6}
    label = refined_label(image, cam, present, box, **thresholds)
    assert len(label.unique()) >= 4
    assert torch.equal(label, refined_label(image, *more, box, **thresholds))
    assert torch.equal(seed_label(cam, present, **thresholds), seed_label(*more, **thresholds))


def test_images_of_a_batch_do_not_influence_each_other():
    image, cam, present = torch.rand(3, 3, 10, 10), torch.rand(3, 2, 10, 10), torch.tensor([[0, 1], [2, 5], [1, 3]])
    box = torch.tensor([[0, 10, 0, 10], [1, 9, 0, 5], [0, 3, 3, 10]])
    thresholds = {"bg_threshold": 0.3, "fg_threshold": 0.6}
    together = refined_label(image, cam, present, box, **thresholds)
    for b in range(3):
        one = slice(b, b + 1)
        assert torch.equal(together[one], refined_label(image[one], cam[one], present[one], box[one], **thresholds))


def test_padded_classes_have_no_share_in_the_softmax():
    scores = scores_with_background(torch.zeros(1, 2, 1, 1), torch.tensor([[5, -1]]), (0.25, 0.7))
    assert scores.flatten().tolist() == pytest.approx([0.25, 0, -torch.inf, 0.7, 0, -torch.inf])
    assert scores.shape == (1, 2, 3, 1, 1) and scores.softmax(2)[0, :, 2].eq(0).all()


def test_packed_channels_become_class_ids():
    index = torch.tensor([[[0, 1, 2]], [[2, 1, 0]]])
    assert class_ids(index, torch.tensor([[3, 9], [0, 1]])).tolist() == [[[0, 4, 10]], [[2, 1, 0]]]


def test_boxes_are_half_open():
    inside = inside_box(torch.tensor([[1, 3, 0, 2], [0, 0, 0, 4]]), 4, 4)
    assert inside[0].nonzero().tolist() == [[1, 0], [1, 1], [2, 0], [2, 1]] and not inside[1].any()
    assert whole_box(torch.zeros(2, 3, 4, 6)).tolist() == [[0, 4, 0, 6]] * 2


@pytest.mark.parametrize(("edge", "valid"), [(8, False), (9, True), (24, True), (25, True)])
def test_a_token_is_valid_where_its_centre_is(edge, valid):
    tokens = valid_tokens(torch.tensor([[0, 32, 0, edge]]), (2, 3), 16)  # centres at 8, 24, 40
    assert tokens.shape == (1, 2, 3) and tokens.dtype == torch.bool
    assert tokens[0, :, 0].tolist() == [valid, valid]
    assert tokens[0, :, 1].all().item() == (edge > 24) and not tokens[0, :, 2].any()
    assert not valid_tokens(torch.tensor([[9, 24, 0, 48]]), (2, 3), 16).any()
    assert valid_tokens(torch.tensor([[8, 24, 0, 48]]), (2, 3), 16)[0].tolist() == [[True] * 3, [False] * 3]


def test_tokens_are_valid_where_the_golden_vectors_say(golden):
    arrays = golden("msee_p0")
    height, width = arrays["valid"].shape[-2:]
    assert np.array_equal(valid_tokens(torch.from_numpy(arrays["img_box"]), (height, width), 16), arrays["valid"])


def test_half_precision_cams_and_images_are_refined_in_float32():
    image, cam = torch.rand(1, 3, 48, 48).bfloat16(), torch.rand(1, 3, 48, 48).bfloat16()
    rest = torch.tensor([[0, 1, 2]]), torch.tensor([[0, 48, 0, 48]])
    thresholds = {"bg_threshold": 0.4, "fg_threshold": 0.6}
    expected = refined_label(image.float(), cam.float(), *rest, **thresholds)
    assert torch.equal(refined_label(image, cam, *rest, **thresholds), expected)


def test_mistakes_are_named():
    cam, present, box = torch.zeros(1, 2, 4, 4), torch.tensor([[0, 1]]), torch.tensor([[0, 4, 0, 4]])
    good = {"bg_threshold": 0.2, "fg_threshold": 0.6}
    for low, high in ((0.6, 0.2), (-0.1, 0.2), (0.2, 1.1)):
        wrong = {"bg_threshold": low, "fg_threshold": high}
        for call in (
            lambda options: seed_label(cam, present, **options),
            lambda options: certainty(cam, **options),
            lambda options: refined_label(torch.rand(1, 3, 4, 4), cam, present, box, **options),
        ):
            with pytest.raises(ValueError, match="wanted 0 <= bg_threshold <= fg_threshold <= 1"):
                call(wrong)
    assert certainty(cam + 1, bg_threshold=0, fg_threshold=1).min() == 2
    three = torch.zeros(1, 3, dtype=torch.int64)
    for call in (seed_label, lambda *args, **options: refined_label(torch.rand(1, 3, 4, 4), *args, box, **options)):
        with pytest.raises(ValueError, match=r"cam \(1, 2, 4, 4\) and present \(1, 3\)"):
            call(cam, three, **good)
    with pytest.raises(ValueError, match="resize the cams to the image first"):
        refined_label(torch.rand(1, 3, 8, 8), cam, present, box, **good)
    with pytest.raises(ValueError, match="nothing is left of 4 x 4 pixels"):
        refined_label(torch.rand(1, 3, 4, 4), cam, present, box, down_scale=5, **good)
