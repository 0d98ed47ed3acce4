"""Clips: frames with times, an mp4, a plot; resumed in both passes; smoothed, normalised, bounded."""

import csv
import itertools
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.pages import read_page
from support.predictions import settings
from support.videos import write_mp4

import wsss
from launcher.errors import ConfigError
from launcher.predict import clips, parts
from launcher.predict.defaults import settle
from launcher.predict.masks import predict_frame
from launcher.predict.model import load_model
from launcher.predict.movie import Movie
from launcher.predict.parts import Seen, mean_around, seen_of, smoothed, write_part
from launcher.predict.run import predict
from launcher.predict.settings import Wishes, look_as
from launcher.predict.views import Looked
from shards.image_bytes import decode_mask
from shards.schema import DataError
from shards.sources.video import decoded_frames, frame_count, timed_frames

OPEN = Wishes(kind="project", gate=0.0, threshold=0.1, batch_size=4)


@pytest.fixture
def clip(run, monkeypatch):
    """A clip of 20 frames at 12 frames per second, in parts of 8."""
    monkeypatch.setattr(clips, "PART", 8)
    write_mp4(Path("cam/clip.mp4"), 20)
    return run


def rows(out="out"):
    return list(csv.DictReader(Path(out, "frames.csv").open()))


def masks(out="out"):
    return {path.name: path.read_bytes() for path in sorted(Path(out, "masks/clip").iterdir())}


def test_a_clip_becomes_masks_with_times_an_mp4_a_plot_and_stills(clip):
    done = predict(["cam"], clip, Path("out"), OPEN)
    assert done.failures == [] and "20 frames" in done.words
    found = rows()
    assert [int(row["frame"]) for row in found] == list(range(20))
    assert [float(row["time_s"]) for row in found] == pytest.approx([n / 12 for n in range(20)], abs=1e-3)
    mask = decode_mask(Path("out", found[7]["mask"]).read_bytes(), "mask")
    assert mask.shape == (32, 48) and int(found[7]["area_px"]) == (mask == 1).sum() > 0
    movie = Path("out/clips/clip.mp4")
    assert frame_count(movie) == 20
    times = [float(frame.time) for frame in decoded_frames(movie)]
    assert times == pytest.approx([n / 12 for n in range(20)], abs=2e-3)
    assert "<svg" in Path("out/clips/clip.area.svg").read_text()
    assert len(list(Path("out/overlays/clip").iterdir())) == clips.STILLS
    page = Path("out/contact_sheet.html").read_text()
    read_page(Path("out/contact_sheet.html"), beside=("clips/", "overlays/", "masks/", "frames.csv"))
    assert 'src="clips/clip.mp4"' in page and page.count("<figure") == clips.STILLS and "<svg" in page
    assert "</b>frame 0 · " in page and "<b>0.0 s   " in page and "</b>frame 19 · " in page and "<b>1.6 s   " in page
    assert not list(Path("out/.rows/clip-clip").glob("part-*"))


def test_every_takes_the_first_frame_of_each_period(clip):
    assert [frame.number for frame in timed_frames(Path("cam/clip.mp4"), 0.5)] == [0, 6, 12, 18]
    assert [frame.number for frame in timed_frames(Path("cam/clip.mp4"), 0.3)] == [0, 4, 8, 11, 15, 18]  # no drift
    predict(["cam"], clip, Path("out"), Wishes(gate=0.0, every_s=0.5, heat=True))
    assert [(int(row["frame"]), float(row["time_s"])) for row in rows()] == [(0, 0.0), (6, 0.5), (12, 1.0), (18, 1.5)]
    assert frame_count(Path("out/clips/clip.mp4")) == 4
    assert [path.name for path in sorted(Path("out/heat/clip").iterdir())] == [f"{n:06d}.jpg" for n in (0, 6, 12, 18)]


def test_masks_of_a_clip_are_those_of_its_maps_over_the_strongest_of_all_parts(clip):
    predict(["cam"], clip, Path("out"), OPEN)
    settled = settle(model := load_model(clip, "cpu"), OPEN)
    images = [frame.image for frame in timed_frames(Path("cam/clip.mp4"))]
    found = look_as(settled, model, images)
    strengths = np.array([looked.strength[0] for looked in found])
    assert strengths.argmax() == 11 and strengths[16:].max() < strengths[7] < strengths[11] / 2  # of three parts
    for n in (0, 7, 11, 19):
        looked = found[n]._replace(cam=found[n].cam * strengths[n] / strengths.max())
        wanted = predict_frame(images[n], looked, settled, ("smoke",), model.config.segment).mask
        mask = decode_mask(Path(f"out/masks/clip/{n:06d}.png").read_bytes(), "mask")
        assert (mask != wanted).mean() < 0.01 and mask.any() == (n in (7, 11))  # maps are kept in float16
    predict(["cam"], clip, Path("smooth"), replace(OPEN, smooth_s=0.5))
    assert decode_mask(Path("smooth/masks/clip/000012.png").read_bytes(), "mask").any()  # of the frames before it


@pytest.mark.parametrize(("place", "at"), [("write_part", 2), ("row_of", 3), ("publish", 0)])
def test_a_clip_that_was_killed_goes_on_and_ends_the_same(clip, monkeypatch, place, at):
    predict(["cam"], clip, Path("whole"), OPEN)
    from launcher.predict import movie

    module, calls, looked = (movie if place == "publish" else clips), [], []
    original, look = getattr(module, place), clips.look_as

    def killed(*arguments, **named):
        if len(calls) == at:
            raise KeyboardInterrupt
        calls.append(1)
        return original(*arguments, **named)

    monkeypatch.setattr(module, place, killed)
    with pytest.raises(KeyboardInterrupt):
        predict(["cam"], clip, Path("out"), OPEN)
    assert not Path("out/clips/clip.mp4").exists()
    monkeypatch.setattr(module, place, original)
    monkeypatch.setattr(clips, "look_as", lambda *a: looked.append(len(a[2])) or look(*a))
    predict(["cam"], clip, Path("out"), OPEN)
    assert sum(looked) == (4 if place == "write_part" else 0)  # what was looked at is not looked at again
    assert Path("out/frames.csv").read_bytes() == Path("whole/frames.csv").read_bytes()
    assert masks("out") == masks("whole") and frame_count(Path("out/clips/clip.mp4")) == 20
    stamp = Path("out/clips/clip.mp4").stat().st_mtime_ns
    predict(["cam"], clip, Path("out"), OPEN)
    assert Path("out/clips/clip.mp4").stat().st_mtime_ns == stamp and sum(looked) <= 4


def test_a_clip_whose_movie_was_removed_or_that_has_changed_is_made_again(clip):
    predict(["cam"], clip, Path("out"), OPEN)
    Path("out/clips/clip.mp4").unlink()
    predict(["cam"], clip, Path("out"), OPEN)
    assert frame_count(Path("out/clips/clip.mp4")) == 20
    write_mp4(Path("cam/clip.mp4"), 5)
    predict(["cam"], clip, Path("out"), OPEN)
    assert frame_count(Path("out/clips/clip.mp4")) == 5 and len(rows()) == 5


def test_no_more_frames_than_a_batch_are_in_memory_whatever_the_length(clip, monkeypatch):
    frames, most = [], []

    class Image(np.ndarray):  # a plain array cannot be watched
        pass

    def watched(path, every_s=None):
        for frame in timed_frames(path, every_s):
            image = frame.image.view(Image)
            frames.append(weakref.ref(image))
            frame = frame._replace(image=image)
            del image
            yield frame
            most.append(sum(reference() is not None for reference in frames))

    monkeypatch.setattr(clips, "timed_frames", watched)
    predict(["cam"], clip, Path("out"), OPEN)
    assert len(most) >= 38 and max(most) <= OPEN.batch_size + 3


def test_a_clip_that_is_cut_short_or_is_none_is_named_and_the_others_are_done(clip):
    path = write_mp4(Path("cam/whole.mp4"), 3).with_name("clip.mp4")
    Path("cam/clip.mkv").write_bytes(b"?" * 100)
    path.write_bytes(path.read_bytes()[:-200])
    done = predict(["cam"], clip, Path("out"), OPEN)
    assert [Path(failure.file).name for failure in done.failures] == ["clip.mkv", "clip.mp4"]
    assert "does not open as a video" in done.failures[0].reason and "cut short" in done.failures[1].reason
    assert predict(["cam"], clip, Path("out"), OPEN).failures == done.failures and len(rows()) == 3


def test_a_clip_that_does_not_decode_to_its_end_is_predicted_as_far_as_it_goes(clip, monkeypatch):
    def ending(path, every_s=None):
        yield from itertools.islice(timed_frames(path, every_s), 10)
        raise DataError(f"{path}: does not decode after 10 frames")

    monkeypatch.setattr(clips, "timed_frames", ending)
    done = predict(["cam"], clip, Path("out"), OPEN)
    assert [failure.reason for failure in done.failures] == ["cam/clip.mp4: does not decode after 10 frames"]
    assert len(rows()) == 10 and frame_count(Path("out/clips/clip.mp4")) == 10


def test_damaged_frames_are_named_and_left_out(clip, monkeypatch):
    def damaged(path, every_s=None):
        for frame in timed_frames(path, every_s):
            yield frame._replace(image=None) if frame.number in (0, 9) else frame

    monkeypatch.setattr(clips, "timed_frames", damaged)
    done = predict(["cam"], clip, Path("out"), OPEN)
    assert [(failure.frame, failure.reason) for failure in done.failures] == [
        ("0", "cam/clip.mp4: frame 0 is damaged"),
        ("9", "cam/clip.mp4: frame 9 is damaged"),
    ]
    assert [int(row["frame"]) for row in rows()] == [n for n in range(20) if n not in (0, 9)]


def test_a_clip_that_is_gone_stays_in_the_table_and_on_the_page(clip):
    predict(["cam"], clip, Path("out"), OPEN)
    write_mp4(Path("cam/new.mp4"), 2)
    Path("cam/clip.mp4").unlink()
    predict(["cam"], clip, Path("out"), OPEN)
    assert [row["file"] for row in rows()] == ["clip.mp4"] * 20 + ["new.mp4"] * 2
    assert Path("out/contact_sheet.html").read_text().count("<video") == 2


def seen(number, time_s, value, strength=1.0, side=2):
    cam = np.full((1, side, side), value, np.float32)
    return Seen(number, time_s, Looked(cam, np.array([value]), np.array([strength])))


def test_maps_are_smoothed_with_weights_that_fall_to_0_at_half_the_time():
    frames = [seen(n, n / 4, float(n == 2)) for n in range(6)]
    found = [float(each.looked.cam[0, 0, 0]) for each in smoothed(iter(frames), 1.5)]
    assert [each.looked.probs[0] for each in smoothed(iter(frames), 1.5)] == pytest.approx(found, abs=1e-5)
    # weights 1, 2/3 and 1/3 at 0, 1/4 and 1/2 s; at the ends there are fewer
    assert found == pytest.approx([1 / 6, 2 / 8, 3 / 9, 2 / 9, 1 / 8, 0.0], abs=1e-5)
    assert [each.number for each in smoothed(iter(frames), 1.5)] == list(range(6))
    assert [each.looked.cam[0, 0, 0] for each in smoothed(iter(frames), 0.0)] == [0, 0, 1, 0, 0, 0]


def test_maps_of_a_clip_that_changes_its_size_are_smoothed_at_the_grid_of_each(tmp_path):
    write_part(tmp_path, 0, [seen(0, 0.0, 0.0), seen(1, 0.25, 1.0, side=4)], [])
    first, second = smoothed(seen_of(tmp_path, settings(), np.ones(1)), 1.0)
    assert first.looked.cam == pytest.approx(np.full((1, 2, 2), 1 / 3), abs=1e-5)  # weights 1 and 1/2
    assert second.looked.cam == pytest.approx(np.full((1, 4, 4), 2 / 3), abs=1e-5)


def test_smoothing_a_long_clip_holds_the_frames_of_its_window_alone(monkeypatch):
    held = []
    monkeypatch.setattr(parts, "mean_around", lambda *a: held.append(len(a[1])) or mean_around(*a))
    frames = [seen(n, n / 4, float(n == 6)) for n in range(40)]
    found = [float(each.looked.cam[0, 0, 0]) for each in smoothed(iter(frames), 1.5)]
    assert found == pytest.approx([0] * 4 + [1 / 9, 2 / 9, 3 / 9, 2 / 9, 1 / 9] + [0] * 31, abs=1e-5)
    assert max(held) == 8  # 3 on either side, and the one that tells that the window is full


def test_maps_are_divided_by_the_strongest_of_the_clip(tmp_path):
    grid = np.array([[[1.0, 0.5], [0.0, 0.0]]], np.float32)
    looked = [Looked(grid, np.array([1.0]), np.array([strength])) for strength in (2.0, 8.0)]
    write_part(tmp_path, 0, [Seen(n, n / 10, each) for n, each in enumerate(looked)], [])

    def read(strongest, normalise="clip"):
        of_clip = seen_of(tmp_path, settings(normalise=normalise), np.array([strongest], np.float32))
        return [each.looked.cam.tolist() for each in of_clip]

    assert read(8.0) == [(grid / 4).tolist(), grid.tolist()]
    assert read(0.0) == [(0 * grid).tolist()] * 2  # not NaN
    assert read(8.0, "frame") == [grid.tolist()] * 2


def test_a_movie_takes_frames_of_odd_and_other_sizes_and_of_one_time(tmp_path):
    with Movie(tmp_path / "a.mp4", rate=0.2) as movie:
        for size, time_s in (((33, 47), 0.0), ((33, 47), 0.0), ((33, 90), 0.5), ((64, 47), 1.0), ((32, 46), 2.0)):
            movie.add(np.zeros((*size, 3), np.uint8), time_s)
    frames = list(decoded_frames(tmp_path / "a.mp4"))
    assert {(frame.height, frame.width) for frame in frames} == {(32, 46)}
    assert [float(frame.time) for frame in frames] == pytest.approx([0, 0.001, 0.5, 1, 2], abs=1e-4)


def test_what_is_for_clips_is_refused_without_one(run):
    Image.new("RGB", (8, 8)).save("a.png")
    for wishes in (Wishes(every_s=1.0), Wishes(smooth_s=1.0), Wishes(normalise="clip")):
        with pytest.raises(ConfigError, match="is for clips, and SOURCE holds none; leave it out"):
            predict(["a.png"], run, Path("out"), wishes)
    with pytest.raises(ConfigError, match="--smooth is for clips"):
        wsss.load(run, smooth_s=1.0)
    assert not Path("out").exists()
