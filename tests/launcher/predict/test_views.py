"""How a network sees a frame: the scale, the windows, and what the maps then are."""

import numpy as np
import pytest
import torch
from support.networks import tiny_vit

from launcher.config.sections import CamConfig
from launcher.jobs.infer import cams_of
from launcher.predict.model import load_model
from launcher.predict.views import Scale, look, read_maps, without
from wsss.methods.classify import Classify


def test_frames_like_those_of_training_are_squashed_and_larger_ones_keep_the_size_of_things():
    known = Scale(224, (400, 600))
    assert known.of((400, 600)) is None and known.of((480, 640)) is None
    assert known.of((1080, 1920)) == pytest.approx(224 / np.sqrt(400 * 600))  # as a training image was
    assert known.of((640, 480)) is None  # on its side
    assert "up to 500 x 750 px, larger frames through windows of 224 px, at scale 0.46" in known.describe()


def test_without_the_size_of_training_images_a_large_frame_is_scaled_to_the_view():
    unknown = Scale(224, None)
    assert unknown.of((600, 600)) is None
    assert unknown.of((1080, 1920)) == pytest.approx(2.4 * 224 / 1080)
    assert Scale(224, None, how="windows").of((300, 300)) == 1.0  # nothing is enlarged
    assert Scale(224, None, 0.25).of((100, 100)) == 0.25 and Scale(224, None, how="squash").of((4000, 4000)) is None


def test_a_network_that_learnt_from_crops_sees_frames_whole_as_large_as_the_training_images():
    crops = Scale(448, (375, 500), from_crops=True)
    assert crops.of((375, 500)) == 1.0 and crops.of((240, 320)) == 1.0 and not crops.through_windows
    assert crops.of((3000, 4000)) == pytest.approx(0.125)
    assert Scale(448, None, from_crops=True).of((4480, 448)) == pytest.approx(np.sqrt(0.1))
    assert "whole, scaled down to the area of 433 x 433 px, as training images are 375 x 500 px" in crops.describe()


def test_a_squashed_frame_has_the_maps_of_infer(run):
    model = load_model(run, "cpu")
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    (looked,) = look(model, "project", Scale(32, None), [image])
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    cams, probs = cams_of(model.method, tensor, model.config.cam)
    np.testing.assert_allclose(looked.cam, cams["project"][0].numpy(), atol=1e-6)
    np.testing.assert_allclose(looked.probs, probs[0].numpy(), atol=1e-6)


def test_frames_of_several_sizes_at_once_are_what_each_is_alone(run):
    model, rng = load_model(run, "cpu"), np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3)).astype(np.uint8) for size in ((32, 48), (160, 100), (48, 48))]
    together = look(model, "grad", Scale(32, None), images)
    for image, looked in zip(images, together, strict=True):
        (alone,) = look(model, "grad", Scale(32, None), [image])
        np.testing.assert_allclose(looked.cam, alone.cam, atol=1e-5)
    assert together[1].cam.shape[-2:] == (15, 10)  # through windows at scale 0.768: a cell of 8 px


def test_strengths_tell_frames_apart_that_are_all_normalised_to_a_peak_of_1():
    torch.manual_seed(0)
    method = Classify(tiny_vit(2)).eval()
    with torch.no_grad():
        method.student.head.bias.fill_(1.0)
        image = torch.rand(3, 3, 32, 32)
        out = method.student(image)
    cam, _, strength = read_maps(method, image, CamConfig(kinds=("class_map",)), None)
    raw = out.class_map_BKhw.relu()
    torch.testing.assert_close(strength, raw.amax((-2, -1)) - raw.amin((-2, -1)))
    torch.testing.assert_close(
        cam * strength[..., None, None], raw - raw.amin((-2, -1), keepdim=True), atol=1e-5, rtol=0
    )
    _, _, flipped = read_maps(method, image, CamConfig(kinds=("class_map",), flip=True, scales=(1.0, 0.5)), None)
    assert flipped.shape == (3, 2)


def test_what_is_ignored_gets_the_lowest_value_of_the_rest_also_in_the_mirror():
    raw = torch.tensor([[[[9.0, 2.0, 3.0, 4.0]]], [[[4.0, 3.0, 2.0, 9.0]]]])  # an image and its mirror image
    kept = torch.ones(4, 16)
    kept[:, :4] = 0
    assert without(raw, kept, ways=2).tolist() == [[[[2.0, 2.0, 3.0, 4.0]]], [[[4.0, 3.0, 2.0, 2.0]]]]
    assert without(raw, torch.zeros(4, 16), ways=2).tolist() == torch.zeros_like(raw).tolist()
