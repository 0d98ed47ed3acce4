import pytest
import torch
import torch.nn.functional as F

from wsss.maps.cam import normalise_cam
from wsss.maps.fusion import (
    RULES,
    TOCO,
    CamRule,
    fold_views,
    fuse_cams,
    multi_scale_cam,
    packed,
)
from wsss.maps.scales import map_padded, scaled_views
from wsss.tensors import resize


def patch_network(arrays, dtype):
    """The golden file's network: tokens by a convolution of stride 16, two classifiers."""
    w = {
        name: torch.from_numpy(arrays[name]).to(dtype)
        for name in ("patch_weight", "patch_bias", "cls_weight", "aux_weight")
    }

    def maps_of(image):
        tokens = F.conv2d(image, w["patch_weight"], w["patch_bias"], stride=16)
        maps = {name: F.conv2d(tokens, w[f"{name}_weight"][..., None, None]) for name in ("cls", "aux")}
        return maps, maps["cls"].amax(dim=(2, 3))

    return maps_of


@pytest.mark.parametrize("case", ["msccam_p0", "msccam_p1"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 5e-6)])
def test_fused_cams_equal_the_golden_vectors(golden, case, dtype, tolerance):
    arrays = golden(case)
    image = torch.from_numpy(arrays["image"]).to(dtype)
    assert TOCO.scales == tuple(arrays["scales"].tolist()) and TOCO.flip
    views = list(scaled_views(patch_network(arrays, dtype), image, stride=16, scales=TOCO.scales, pad="floor"))
    assert [list(view.maps["cls"][0].shape[-2:]) for view in views] == arrays["grid_per_scale"].tolist()
    for name, wanted in (("cls", "cam_f64"), ("aux", "cam_aux_f64")):
        cam = fuse_cams([view.maps[name] for view in views], image.shape[-2:], fuse="toco")
        torch.testing.assert_close(cam.double(), torch.from_numpy(arrays[wanted]), atol=tolerance, rtol=0)


def scores_of(image):
    return image.mean(dim=(2, 3))


def identity(image):
    return {"x": image}, scores_of(image)


def blocks(image):
    """The mean of each 4 x 4 block."""
    return {"x": F.avg_pool2d(image, 4)}, scores_of(image)


def maps(*rows):
    """(1, 1, 1, n) logits."""
    return torch.tensor(rows, dtype=torch.float64).reshape(1, 1, 1, -1)


def test_cams_by_hand():
    # the mirror's logits [4, 0] lie at [0, 4]; max with [1, -3] is [1, 4]; the second scale adds relu [0, 2]
    cam = fuse_cams([(maps(1, -3), maps(4, 0)), (maps(-1, 2), maps(-5, -5))], (1, 2))
    torch.testing.assert_close(cam.flatten(), torch.tensor([0.0, 5 / (5 + 1e-5)], dtype=torch.float64))


def test_the_mean_of_normalised_views_by_hand():
    # scale 1: relu [4, 0, 2] -> [1, 0, .5]; its mirror [3, 0, 6] turned round [6, 0, 3] -> the same;
    # scale 2: [1] has no range -> 0 everywhere. The mean of four maps, not normalised again.
    cam = fuse_cams([(maps(4, -1, 2), maps(3, 0, 6)), (maps(1), maps(1))], fuse="mean")
    torch.testing.assert_close(cam.flatten(), torch.tensor([0.5, 0.0, 0.25]), atol=1e-6, rtol=0)
    # ToCo's rule of the same views: [6, 0, 3] at scale 1, and 1 everywhere, which the minimum takes away again
    cam = fuse_cams([(maps(4, -1, 2), maps(3, 0, 6)), (maps(1), maps(1))], fuse="toco")
    torch.testing.assert_close(cam.flatten().float(), torch.tensor([1.0, 0.0, 0.5]), atol=1e-5, rtol=0)


def test_probabilities_are_averaged_by_either_rule():
    views = [(maps(0.2, 0.4),), (maps(0.6, 0.4),)]
    for fuse in ("mean", "toco"):
        torch.testing.assert_close(fuse_cams(views, fuse=fuse, kind="seg").flatten(), torch.tensor([0.4, 0.4]))


def one_dot(row, column):
    """9 x 14 px, stride 4: 1 at one pixel, 0 elsewhere."""
    image = torch.zeros(1, 3, 9, 14)
    image[..., row, column] = 16.0
    return image


def test_a_side_that_is_no_multiple_is_padded_floored_or_resized():
    seen = {}
    for pad in ("pad", "floor", "resize"):
        (view,) = scaled_views(blocks, one_dot(8, 13), stride=4, flip=False, pad=pad)
        (seen[pad],) = view.maps["x"]
    assert {pad: tuple(x.shape[-2:]) for pad, x in seen.items()} == {"pad": (9, 14), "floor": (2, 3), "resize": (2, 4)}
    assert seen["floor"].count_nonzero() == 0  # the last row and the last two columns are gone
    # the dot, repeated into three rows and two columns, fills 4 x 3 of the last block's 4 x 4 px: 12. Its pixel centre
    # (8.5, 13.5) lies 2.5 of 4 px from the middle of the block above to that of its own, and 3.5 of 4 px from the left
    assert seen["pad"][0, 0, 8, 13].item() == pytest.approx(12 * 2.5 / 4 * 3.5 / 4)
    assert seen["resize"][0, 0, 1, 3] > 0


def test_floored_maps_are_read_as_those_of_the_whole_image():
    # the dot in pixel column 7 lies in block 1 of 3; stretched over 14 px the block is columns 4.67 to 9.33
    (view,) = scaled_views(blocks, one_dot(3, 7), stride=4, flip=False, pad="floor")
    cam = fuse_cams([view.maps["x"]], (9, 14), fuse="toco")[0, 0, 0]
    assert cam.argmax().item() in (6, 7) and cam[0] == 0


@pytest.mark.parametrize("fuse", ["mean", "toco"])
def test_rules_of_padding_agree_where_every_side_is_a_multiple(fuse):
    image = torch.rand(2, 3, 16, 24)
    cams = [
        multi_scale_cam(blocks, image, stride=4, rule=CamRule((0.5, 1.0, 1.5), True, fuse, pad))[0]["x"]
        for pad in ("resize", "pad", "floor")
    ]
    assert cams[0].shape == (2, 3, 6, 9)
    assert torch.equal(cams[0], cams[1]) and torch.equal(cams[0], cams[2])


def test_a_padded_cam_is_as_small_as_its_grid():
    rule = CamRule((1.0, 0.5), True, "toco", "pad")
    cam = multi_scale_cam(blocks, torch.rand(1, 3, 9, 14), stride=4, rule=rule)[0]["x"]
    assert cam.shape == (1, 3, 3, 4) and cam.min() >= 0 and cam.max() <= 1


def test_a_map_that_is_nowhere_positive_and_a_padded_channel_are_exactly_zero():
    views = [(torch.stack([-torch.rand(2, 3, 4), torch.zeros(2, 3, 4)], dim=1),) * 2]
    assert fuse_cams(views, (6, 8)).count_nonzero() == 0


@pytest.mark.parametrize(("rule", "wanted"), [("voc", [7.0, -1.0]), ("coco", [10.0, 3.0])])
def test_the_rules_of_voc_and_coco_by_hand(rule, wanted):
    # scale 1: [3, 1] and the mirror's [1, 4] turned round; scale 2: [6, -3] and [1, 2] turned round
    views = [(maps(3, -3), maps(1, 4)), (maps(6, -3), maps(2, 0))]
    flips, scales = RULES[rule]
    fused = fold_views(views, (1, 2), flips=flips, scales=scales)
    assert fused.flatten().tolist() == wanted


def test_one_scale_without_a_mirror_is_the_resized_logits():
    logits = torch.randn(2, 3, 4, 5)
    fused = fold_views([(logits,)], (9, 7), flips="sum", scales="max")
    torch.testing.assert_close(fused, F.interpolate(logits, (9, 7), mode="bilinear"))


def test_half_precision_logits_are_fused_in_float32():
    assert fuse_cams([(torch.ones(1, 1, 2, 2, dtype=torch.bfloat16),)], (4, 4)).dtype == torch.float32


def test_nothing_to_fuse_is_refused():
    with pytest.raises(ValueError, match="no view to fuse"):
        fuse_cams([], (2, 2))
    with pytest.raises(ValueError, match="no view to fuse"):
        fuse_cams([], fuse="mean")


@pytest.mark.parametrize(("pad", "size"), [("resize", (2, 2)), ("pad", (1, 4)), ("floor", (2, 4))])
def test_something_is_left_of_a_side_however_small_it_is_and_the_scale(pad, size):
    seen = []

    def view(image):
        seen.append(tuple(image.shape[-2:]))
        return {"x": image}, image.mean(dim=(2, 3))

    (view_of_scale,) = scaled_views(
        view, torch.rand(1, 3, 1, 9), stride=2, scales=[0.5 if pad != "resize" else 0.1], pad=pad
    )
    assert min(seen[0]) >= 2 and not any(side % 2 for side in seen[0])
    assert view_of_scale.maps["x"][0].shape[-2:] == size


def test_the_mirror_image_of_an_image_has_the_mirrored_cam():
    torch.manual_seed(1)
    conv = torch.nn.Conv2d(3, 2, 8, stride=8)
    image = torch.rand(1, 3, 32, 48)

    def cam(image):
        views = scaled_views(lambda x: ({"x": conv(x)}, scores_of(x)), image, stride=8, scales=(1, 0.5, 1.5))
        return fuse_cams((view.maps["x"] for view in views), (32, 48))

    torch.testing.assert_close(cam(image.flip(-1)), cam(image).flip(-1))


def test_an_image_is_padded_to_the_stride_and_nothing_of_it_is_dropped():
    seen = []

    def maps_of(image):
        seen.append(image)
        return {"x": F.avg_pool2d(image, 4)}, scores_of(image)

    image = torch.rand(1, 3, 9, 15)
    image[..., -1, :] = 5.0  # a floored grid would not see the last row
    x = map_padded(maps_of, image, 4)[0]["x"]
    assert seen[0].shape == (1, 3, 12, 16) and x.shape == (1, 3, 9, 15)
    assert (seen[0][..., 8:, :] == 5).all()  # the border repeats the image's own edge, no black
    assert x[..., -1, :].min() > 3
    # the maps of the padded image, cut: a cell of the map still lies over its pixels
    torch.testing.assert_close(x, F.interpolate(F.avg_pool2d(seen[0], 4), (12, 16), mode="bilinear")[..., :9, :15])
    assert map_padded(maps_of, image[..., :8, :], 4)[0]["x"].shape == (1, 3, 8, 15)
    assert map_padded(maps_of, image[..., :8], 4)[0]["x"].shape == (1, 3, 9, 8)


def test_sides_that_are_multiples_of_the_stride_give_the_maps_as_they_are():
    x = map_padded(blocks, torch.rand(1, 3, 8, 12), 4)[0]["x"]
    assert x.shape == (1, 3, 2, 3)


def test_packing_takes_the_channels_of_the_present_classes_and_leaves_the_rest_zero():
    present = torch.tensor([[1, 3], [-1, -1], [0, -1]])
    maps = torch.arange(1, 13, dtype=torch.float32).reshape(3, 4, 1, 1)
    assert packed(maps, present).flatten(1).tolist() == [[2, 4], [0, 0], [9, 0]]


def linear(image):
    """Two layers, the second coarser, as gradient kinds of several layers give them."""
    return {"grad": [F.avg_pool2d(image, 4), F.avg_pool2d(image, 8)]}, scores_of(image)


@pytest.mark.parametrize("fuse", ["mean", "toco"])
def test_layers_are_fused_before_views(fuse):
    image = torch.rand(1, 3, 16, 16)
    rule = CamRule((1.0,), False, fuse, "resize")
    cam, scores = multi_scale_cam(linear, image, stride=4, rule=rule)
    layers = [normalise_cam(F.avg_pool2d(image, 4)), resize(normalise_cam(F.avg_pool2d(image, 8)), (4, 4))]
    torch.testing.assert_close(cam["grad"], normalise_cam((layers[0] + layers[1]) / 2), atol=2e-5, rtol=0)
    torch.testing.assert_close(scores, scores_of(image))
