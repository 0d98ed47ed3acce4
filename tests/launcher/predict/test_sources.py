from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launcher.errors import RunError
from launcher.predict.sources import find_inputs, read_image
from shards.schema import DataError


@pytest.fixture
def frames(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", [])
    for name in ("cam1/b.JPG", "cam1/a.jpg", "cam2/a.png", "cam2/clip.mp4", "cam2/.hidden.jpg", "cam2/notes.docx"):
        Path("frames", name).parent.mkdir(parents=True, exist_ok=True)
        Path("frames", name).write_bytes(b"?")
    return tmp_path


def keys(*sources, out="out"):
    found = find_inputs(sources, Path(out))
    return [each.key for each in (*found.images, *found.clips)]


def test_a_folder_means_the_images_and_clips_below_it_by_name(frames):
    assert keys("frames") == ["cam1_a", "cam1_b", "cam2_a", "cam2_clip"]
    found = find_inputs(["frames"], Path("out"))
    assert found.below == frames / "frames" and [each.name for each in found.clips] == ["cam2/clip.mp4"]


def test_pictures_of_a_folder_that_are_not_read_are_told(frames, capsys):
    (frames / "frames/cam1/c.GIF").write_bytes(b"GIF89a")
    assert "cam1_c" not in keys("frames")
    assert "frames: left out, since these formats are not read: 1 .gif; convert them" in capsys.readouterr().out


def test_globs_lists_stdin_and_files_mean_the_same_once(frames, monkeypatch):
    assert keys("frames/*/a.*") == ["cam1_a", "cam2_a"]
    assert keys("frames/cam1/b.JPG") == ["b"]
    Path("list.txt").write_text("frames/cam1/a.jpg\nframes/cam2\n")
    assert keys("list.txt") == ["cam1_a", "cam2_a", "cam2_clip"]
    Path("frames/list.txt").write_text("cam1/a.jpg\n")  # relative to the list
    assert keys("frames/list.txt", "frames/cam1/a.jpg") == ["a"]
    monkeypatch.setattr("sys.stdin", ["frames/cam1/a.jpg\n", "\n", "frames/cam2/a.png\n"])
    assert keys("-") == ["cam1_a", "cam2_a"]


def test_a_key_does_not_change_when_the_folder_grows(frames):
    before = keys("frames")
    Path("frames/cam1/0.jpg").write_bytes(b"?")
    assert [key for key in keys("frames") if key != "cam1_0"] == before


def test_files_that_differ_by_their_ending_have_two_keys(frames):
    Path("frames/cam1/a.mp4").write_bytes(b"?")
    assert keys("frames/cam1") == ["a_jpg", "b", "a_mp4"]


def test_outputs_inside_of_the_source_are_not_predicted(frames):
    Path("frames/out/overlays").mkdir(parents=True)
    Path("frames/out/overlays/x.jpg").write_bytes(b"?")
    assert "out_overlays_x" not in keys("frames", out="frames/out")
    assert keys("frames/**/*.jpg", out="frames/out") == ["cam1_a"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("frame", "frame: no such file or folder; near: frames"),
        ("/dev/null", "/dev/null: is a pipe or a device; wanted a file"),
        ("rtsp://camera/1", "rtsp://camera/1: is a URL; .* fetch it first"),
        ("frames/cam2/notes.docx", "notes.docx: is neither image nor clip by its ending; wanted .jpg"),
        ("frames/*.gif", r"no image or clip matches this pattern"),
        ("empty", r"empty: no images or clips \(looked for .jpg .*\); it holds 2 .raw"),
        ("-", "stdin lists nothing"),
    ],
)
def test_a_source_that_means_nothing_is_told(frames, source, message):
    Path("empty").mkdir()
    for name in ("a.raw", "b.raw"):
        Path("empty", name).write_bytes(b"?")
    with pytest.raises(RunError, match=message):
        keys(source)


def test_an_image_is_read_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # viewers turn it by a quarter
    Image.fromarray(np.zeros((4, 8, 3), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (8, 4, 3)
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8?")
    for name, reason in (("b.jpg", "does not decode"), ("gone.jpg", "cannot be read")):
        with pytest.raises(DataError, match=f"{name}.*{reason}"):
            read_image(tmp_path / name)
