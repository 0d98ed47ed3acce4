"""How a network sees a frame: the scale, the windows, and what the maps then are."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.methods import build
from support.networks import tiny_vit

from launcher.config.sections import CamConfig
from launcher.errors import RunError
from launcher.jobs.infer import cams_of
from launcher.predict import views
from launcher.predict.model import load_model
from launcher.predict.views import Scale, in_batches, look, read_maps, without
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


def noise(*size):
    return np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)


@pytest.mark.parametrize("scale", [Scale(32, None), Scale(32, None, 1.0, "windows")])
def test_maps_are_normalised_over_what_is_not_ignored(run, scale):
    model, kept = load_model(run, "cpu"), np.ones((48, 64), bool)
    kept[:, :32] = False
    (whole,), (part,) = (look(model, "project", scale, [noise(48, 64)], mask) for mask in (None, kept))
    half = whole.cam.shape[-1] // 2
    assert whole.cam[..., :half].any() and not part.cam[..., :half].any()
    assert whole.cam.max() == pytest.approx(1) and part.cam[..., half:].max() == pytest.approx(1)


def test_a_frame_seen_whole_is_not_seen_through_windows_and_the_smallest_is_a_cell(run):
    model = load_model(run, "cpu")
    scales = [Scale(32, None, 1.0, how) for how in ("whole", "windows")]
    (whole,), (seen,) = (look(model, "project", scale, [noise(64, 96)]) for scale in scales)
    tensor = torch.from_numpy(noise(64, 96)).permute(2, 0, 1)[None] / 255
    cams, _ = cams_of(model.method, tensor, model.config.cam)
    np.testing.assert_allclose(whole.cam, cams["project"][0].numpy(), atol=1e-6)
    assert whole.cam.shape == seen.cam.shape == (1, 8, 12) and not np.allclose(whole.cam, seen.cam, atol=1e-3)
    (smallest,) = look(model, "project", Scale(32, None, 0.25, "whole"), [noise(8, 40)])
    assert smallest.cam.shape == (1, 1, 1)


def test_steps_of_windows_are_those_of_predicting_and_the_precision_is_that_of_training(run):
    model, images = load_model(run, "cpu"), [noise(64, 96)]
    (plain,) = look(model, "project", Scale(32, None, 1.0, "windows"), images)

    def changed(section, **options):
        of_section = getattr(model.config, section).model_copy(update=options)
        config = model.config.model_copy(update={section: of_section})
        return look(replace(model, config=config), "project", Scale(32, None, 1.0, "windows"), images)[0]

    np.testing.assert_array_equal(changed("cam", window_px=16, step_px=8).cam, plain.cam)
    coarse = changed("train", precision="bf16").probs
    assert coarse != plain.probs and coarse == pytest.approx(plain.probs, abs=0.02)


def test_scores_that_are_not_finite_are_refused(run):
    model = load_model(run, "cpu")
    model.method.student.head.bias.data.fill_(torch.nan)
    with pytest.raises(RunError, match="runs/student: its scores are NaN or infinite"):
        look(model, "project", Scale(32, None), [noise(32, 32)])


def test_probabilities_are_as_strong_in_each_frame_of_a_clip():
    method = build("supervised", classes=2).eval()
    cam, _, strength = read_maps(method, torch.rand(2, 3, 32, 32), CamConfig(kinds=("seg",)), None)
    assert strength.tolist() == [[1, 1], [1, 1]] and cam.max() < 1


def test_batches_are_as_long_as_they_may_be_and_shorter_where_frames_are_large(monkeypatch):
    frames = [
        SimpleNamespace(image=image) for image in (noise(10, 10), noise(10, 10), None, noise(30, 10), noise(2, 2))
    ]
    assert [len(batch) for batch in in_batches(frames, 2)] == [2, 2, 1]
    monkeypatch.setattr(views, "BATCH_PX", 300)
    assert [len(batch) for batch in in_batches(frames, 9)] == [4, 1]
    assert [len(batch) for batch in in_batches(frames[3:], 9)] == [1, 1]


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
