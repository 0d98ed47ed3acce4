"""Images to a folder of predictions: what is in it, what goes on after a kill, what is refused."""

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import wsss
from launcher.config.sections import SegmentConfig
from launcher.errors import ConfigError, RunError
from launcher.evaluation.pictures import as_css
from launcher.predict import draw, images, outputs, sheet
from launcher.predict.defaults import settle
from launcher.predict.masks import describe_classes
from launcher.predict.model import load_model
from launcher.predict.run import identify_options, predict, summarise
from launcher.predict.settings import Wishes
from launcher.run.lock import only_writer
from shards.image_bytes import decode_mask

OPEN = Wishes(gate=0.0, threshold=0.5)


@pytest.fixture
def frames(run):
    """Six frames, one of them a large one, beside a run."""
    rng = np.random.default_rng(0)
    Path("frames").mkdir()
    for n in range(6):
        size = (48, 40, 3) if n < 5 else (160, 240, 3)
        Image.fromarray(rng.integers(0, 256, size).astype(np.uint8)).save(f"frames/{n}.png")
    return run


def rows(out="out"):
    return list(csv.DictReader(Path(out, "frames.csv").open()))


def files(out="out"):
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(Path(out).rglob("*"))
        if path.is_file() and path.name not in ("summary.json", "contact_sheet.html", ".lock", "images.jsonl")
    }


def test_a_folder_becomes_masks_overlays_a_table_a_page_and_a_summary(frames, capsys):
    done = predict(["frames"], frames, Path("out"), OPEN)
    assert done.failures == [] and "6 frames: smoke in" in done.words
    said = capsys.readouterr().out
    assert "threshold 0.50 (as asked)" in said and "kind grad (first of cam.kinds)" in said and "classes smoke" in said
    found = rows()
    assert [row["file"] for row in found] == [f"{n}.png" for n in range(6)]
    for row in found:
        image = np.asarray(Image.open(f"frames/{row['file']}"))
        mask = decode_mask(Path("out", row["mask"]).read_bytes(), "mask")
        assert mask.shape == image.shape[:2] and set(np.unique(mask)) <= {0, 1}
        assert int(row["area_px"]) == mask.sum() > 0 and 0 < float(row["probability"]) < 1
        assert Image.open(f"out/overlays/{row['file'][:-4]}.jpg").size == image.shape[1::-1]
    prediction = wsss.load(frames, gate=0.0, threshold=0.5).predict("frames/5.png")
    (wanted,) = describe_classes(prediction)
    assert row["boxes"] == "; ".join(f"{x0} {y0} {x1} {y1}" for x0, y0, x1, y1 in wanted.pop("boxes"))
    assert {name: row[name] for name in wanted} == {name: str(value) for name, value in wanted.items()}
    assert np.array_equal(mask, prediction.mask)
    summary = json.loads(Path("out/summary.json").read_text())
    assert summary["frames"] == 6 and summary["per_class"]["smoke"]["frames"] == 6 and summary["failed"] == 0
    page = Path("out/contact_sheet.html").read_text()
    assert f'<i class="swatch" style="background: {as_css(draw.colour_of(1))}"></i>1 smoke' in page
    assert page.count("data:image/jpeg;base64,") == 6 and "http" not in page and not Path("out/failed.csv").exists()


def test_the_page_of_many_frames_shows_some_of_the_whole_folder_and_counts_all(frames, monkeypatch):
    monkeypatch.setattr(sheet, "TILES", 2)
    for n in range(3):
        Path(f"frames/bad{n}.png").write_text("?")
    predict(["frames"], frames, Path("out"), OPEN)
    page = Path("out/contact_sheet.html").read_text()
    assert "</b>0.png · " in page and "</b>5.png · " in page and page.count("data:image/jpeg;base64,") == 2
    assert "Could not be read: 3<" in page and page.count('<li class="note">') == 2
    assert page.count('<figure class="seen">') == 2
    (Path("out/overlays/0.jpg")).unlink()  # a picture that is gone is no error
    predict(["frames"], frames, Path("out"), OPEN)
    assert Path("out/contact_sheet.html").read_text().count("data:image/jpeg;base64,") == 1


def test_a_class_that_does_not_pass_the_gate_is_nowhere(frames):
    predict(["frames"], frames, Path("out"), Wishes(gate=1.0))
    assert 'class="seen"' not in Path("out/contact_sheet.html").read_text()
    assert all(row["area_px"] == "0" and row["boxes"] == "" and row["mean_score"] == "" for row in rows())


def test_what_was_killed_goes_on_and_ends_with_the_same_files(frames, monkeypatch):
    predict(["frames"], frames, Path("whole"), OPEN)
    written = []

    def killed(*arguments):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(arguments)
        write(*arguments)

    write = images.write_image
    monkeypatch.setattr(images, "write_image", killed)
    with pytest.raises(KeyboardInterrupt):
        predict(["frames"], frames, Path("out"), OPEN)
    monkeypatch.setattr(images, "write_image", write)
    with Path("out/.rows/images.jsonl").open("a") as file:
        file.write('{"key": "3", "sta')  # a line that was cut
    Path("out/masks/.3.png.ab.tmp").write_text("?")
    kept = Path("out/masks/0.png").stat().st_mtime_ns
    predict(["frames"], frames, Path("out"), OPEN)
    assert files("out") == files("whole")
    assert Path("out/masks/0.png").stat().st_mtime_ns == kept


def test_new_and_changed_frames_are_added_and_those_that_are_gone_stay_in_the_table(frames, monkeypatch):
    predict(["frames"], frames, Path("out"), OPEN)
    Image.new("RGB", (20, 30)).save("frames/9.png")
    Image.new("RGB", (20, 30)).save("frames/1.png")
    os.unlink("frames/0.png")
    os.unlink("out/masks/2.png")
    looked = []
    monkeypatch.setattr(images, "look_as", lambda *a: looked.append(len(a[2])) or look(*a))
    predict(["frames"], frames, Path("out"), OPEN)
    assert looked == [3]
    assert {row["file"]: row["width"] for row in rows()}["1.png"] == "20" and len(rows()) == 7
    assert decode_mask(Path("out/masks/1.png").read_bytes(), "mask").shape == (30, 20)


look = images.look_as


def test_a_bad_frame_is_named_counted_and_skipped(frames, capsys):
    Path("frames/2.png").write_bytes(Path("frames/2.png").read_bytes()[:300])
    Image.fromarray(np.zeros((4, 4), np.uint16)).save("frames/deep.png")
    for _ in range(2):  # also when nothing else is left to do
        done = predict(["frames"], frames, Path("out"), OPEN)
        assert [Path(failure.file).name for failure in done.failures] == ["2.png", "deep.png"]
        assert "does not decode" in done.failures[0].reason and "wanted 8 bits" in done.failures[1].reason
        assert "left out: frames/2.png" in capsys.readouterr().err
        assert len(rows()) == 5 and Path("out/failed.csv").read_text().count("\n") == 3
    assert "frames/2.png" in Path("out/contact_sheet.html").read_text()


def test_a_pipe_or_a_device_in_a_folder_is_left_out_and_not_waited_for(frames):
    os.mkfifo("frames/pipe.png")
    Path("frames/zeros.png").symlink_to("/dev/zero")
    done = predict(["frames"], frames, Path("out"), OPEN)
    assert [Path(failure.file).name for failure in done.failures] == ["pipe.png", "zeros.png"] and len(rows()) == 6
    assert all("not a regular file" in failure.reason for failure in done.failures)


def test_a_picture_of_what_is_ignored_must_fit_the_frames(frames):
    Image.fromarray(np.full((48, 40), 255, np.uint8)).save("all.png")
    with pytest.raises(ConfigError, match="all.png: has no black area"):
        predict(["frames"], frames, Path("out"), Wishes(ignore=Path("all.png")))
    ignore = np.zeros((48, 40), np.uint8)
    ignore[:10] = 255
    Image.fromarray(ignore).save("logo.png")
    done = predict(["frames"], frames, Path("out"), Wishes(gate=0.0, ignore=Path("logo.png")))
    (failure,) = done.failures
    assert failure.file == "frames/5.png" and "frame is 160 x 240, --ignore logo.png is 48 x 40" in failure.reason
    mask = decode_mask(Path("out/masks/0.png").read_bytes(), "mask")
    assert (mask[:10] == 255).all() and (mask[10:] < 255).all()


def test_other_settings_are_refused_and_overwriting_removes_nothing_of_others(frames):
    predict(["frames"], frames, Path("out"), OPEN)
    Path("out/mine.txt").write_text("?")
    with pytest.raises(RunError, match=r"made with other settings \(threshold: 0.5, now 0.6\); give another --out"):
        predict(["frames"], frames, Path("out"), Wishes(gate=0.0, threshold=0.6))
    predict(["frames/0.png"], frames, Path("out"), Wishes(gate=0.0, threshold=0.6), overwrite=True)
    assert len(rows()) == 1 and len(list(Path("out/masks").iterdir())) == 1 and Path("out/mine.txt").exists()


def test_a_folder_of_other_weights_is_refused(frames):
    of_both = Wishes(kind="class_map", gate=0.0, threshold=0.5)
    predict(["frames/0.png"], Path("runs/teacher"), Path("out"), of_both)
    with pytest.raises(RunError, match=r"made with other settings \(weights: '\w+', now '\w+'\); give another --out"):
        predict(["frames/1.png"], frames, Path("out"), of_both)


def test_a_folder_of_other_options_of_the_config_is_refused(frames):
    def predict_with(out, wishes, section, **options):
        content = yaml.safe_load((frames / "config.yaml").read_text())
        content[section] |= options
        (frames / "config.yaml").write_text(yaml.safe_dump(content))
        predict(["frames/0.png"], frames, Path(out), wishes)

    crf = [{"name": "crf", "iterations": 1}]
    predict_with("plain", OPEN, "cam", flip=False)
    predict_with("refined", replace(OPEN, refine="crf"), "cam", flip=False)
    predict_with("plain", OPEN, "refine", chain=crf)  # changes nothing here
    with pytest.raises(RunError, match=r"refined: made with other settings \(refiner\.iterations: 5, now 1"):
        predict_with("refined", replace(OPEN, refine="crf"), "refine", chain=crf)
    with pytest.raises(RunError, match=r"plain: made with other settings \(cam\.flip: False, now True"):
        predict_with("plain", OPEN, "cam", flip=True)
    segmenter, segment = settle(load_model(frames, "cpu"), OPEN), SegmentConfig(mean_field={"iterations": 2})
    config = load_model(frames, "cpu").config.model_copy(update={"segment": segment})
    segmenter = replace(segmenter, kind="seg", refine="crf")
    made_of = identify_options(config, segmenter)
    assert made_of["cam"]["flip"] and made_of["refiner"]["iterations"] == 2 and made_of["precision"] == "ieee"


def test_the_summary_counts_the_frames_that_a_class_is_in_and_their_median_area(frames):
    settled = settle(model := load_model(frames, "cpu"), OPEN)
    areas = [[(0, 0.0)], [(5, 10.0), (6, 20.0), (7, 60.0)]]
    journals = [[{"classes": [{"area_px": px, "area_percent": percent}]} for px, percent in rows] for rows in areas]
    found = summarise(model, settled, journals, ["a line"])
    assert found["headline"] == "4 frames: smoke in 3, median area 20.0 %" and found["frames"] == 4
    assert found["per_class"] == {"smoke": {"frames": 3, "median_area_percent": 20.0}}
    found = summarise(model, settled, journals[:1], [])
    assert found["headline"] == "1 frame: no class in any"
    assert found["per_class"] == {"smoke": {"frames": 0, "median_area_percent": None}}


def test_heat_shows_the_scores_over_the_frame_and_is_drawn_where_it_is_asked_for(frames):
    for heat in (False, True):
        predict(["frames/0.png"], frames, Path(f"heat {heat}"), Wishes(gate=0.0, heat=heat))
    assert not Path("heat False/heat").exists()
    image = np.asarray(Image.open("frames/0.png"))
    wanted = draw.heat(image, wsss.load(frames, gate=0.0).predict(image))
    assert Path("heat True/heat/0.jpg").read_bytes() == draw.jpeg(wanted)


def test_a_folder_of_other_things_is_left_alone(frames):
    for overwrite in (False, True):
        with pytest.raises(RunError, match="frames: holds other things than predictions"):
            predict(["frames/0.png"], frames, Path("frames"), OPEN, overwrite=overwrite)
    assert len(list(Path("frames").iterdir())) == 6


def test_a_folder_that_only_finder_has_opened_is_taken_for_empty(frames):
    Path("out").mkdir()
    Path("out/.DS_Store").touch()
    assert predict(["frames/0.png"], frames, Path("out"), OPEN).failures == []


def test_names_that_are_one_on_a_disk_that_ignores_case_are_refused(frames):
    Path("frames/x_a.png").symlink_to("0.png")
    predict(["frames"], frames, Path("out"), OPEN)
    Path("frames/x").mkdir()
    Path("frames/x/A.png").symlink_to("../1.png")
    if not (other_case := Path("out/JOB.JSON")).exists():
        assert predict(["frames"], frames, Path("out"), OPEN).failures == []
        other_case.touch()  # such a disk finds job.json by this name
    with pytest.raises(RunError, match="out: 'x_a' and 'x_A' would be one file on this disk"):
        predict(["frames"], frames, Path("out"), OPEN)


def test_two_at_once_are_refused(frames, tmp_path):
    import subprocess
    import sys

    from support.places import PYTHONPATH

    predict(["frames/0.png"], frames, Path("out"), OPEN)
    code = "import sys\nfrom pathlib import Path\nfrom launcher.run.lock import only_writer\n"
    code += "with only_writer(Path('out')):\n    print('held', flush=True)\n    sys.stdin.read()"
    pipe = subprocess.PIPE
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, env=environment) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(RunError, match=rf"is being filled by process {other.pid} .*give another --out"):
            predict(["frames"], frames, Path("out"), OPEN)
        other.stdin.close()
    with only_writer(Path("out")):
        pass


def test_a_damaged_line_of_the_rows_is_set_aside_and_its_frames_are_done_again(frames, capsys):
    predict(["frames"], frames, Path("out"), OPEN)
    Path("out/.rows/images.jsonl").write_bytes(b"\0" * 40 + b"\n")
    predict(["frames"], frames, Path("out"), OPEN)
    assert len(rows()) == 6 and "moved to" in capsys.readouterr().err


def test_a_full_disk_is_told(frames, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(outputs, "write_whole", full)
    with pytest.raises(RunError, match="out: cannot be written: .*make room on this disk; then start again"):
        predict(["frames"], frames, Path("out"), OPEN)
