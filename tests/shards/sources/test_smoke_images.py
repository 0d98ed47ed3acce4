import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from shards.index import Index
from shards.schema import DataError
from shards.sources.smoke_images import read_table
from shards.write import write_split


@pytest.fixture
def frames(tmp_path):
    """Eight frames of four videos; the first half shows smoke and has masks; one frame is a PNG."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    rows = []
    for n in range(8):
        name = f"frame{n}.{'png' if n == 3 else 'jpg'}"
        Image.fromarray(np.full((6, 8, 3), 20 * n, dtype=np.uint8)).save(tmp_path / "images" / name)
        if n < 4:
            mask = np.zeros((6, 8), dtype=np.uint8)
            mask[:2] = 1
            Image.fromarray(mask).save(tmp_path / "masks" / f"frame{n}.png")
        rows.append({"key": f"frame{n}", "label": int(n < 4), "group": f"video{n // 2}"})
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return tmp_path


def test_a_csv_and_both_forms_of_json_say_the_same(frames):
    from_csv = read_table(frames, "labels.csv")
    rows = list(csv.DictReader((frames / "labels.csv").open()))
    (frames / "list.json").write_text(json.dumps(rows))
    (frames / "dict.json").write_text(json.dumps({"items": {row.pop("key"): row for row in rows}}))
    for name in ("list.json", "dict.json"):
        assert read_table(frames, name).rows == from_csv.rows
    assert [row.smoke for row in from_csv.rows] == [True] * 4 + [False] * 4
    assert from_csv.groups() == ["video0", "video0", "video1", "video1", "video2", "video2", "video3", "video3"]


def test_an_image_column_names_the_file_and_subfolders_become_part_of_the_key(frames):
    (frames / "images/cam 1").mkdir()
    (frames / "images/frame0.jpg").rename(frames / "images/cam 1/a.b.jpg")
    (frames / "t.csv").write_text("image,label,group\nimages/cam 1/a.b.jpg,smoke,v\n")
    (row,) = read_table(frames, "t.csv").rows
    assert (row.key, row.smoke, row.mask) == ("images_cam_1_a_b", True, None)


def test_frames_without_smoke_need_no_mask_file(frames):
    source = replace(read_table(frames, "labels.csv"), with_masks=True)
    index = write_split(source, frames / "out", "val", "pixel")
    assert index.num_samples == 8 and index.class_counts() == {"smoke": 4}
    assert source[0].mask.sum() == 16 and source[7].mask.sum() == 0
    assert source[3].image.startswith(b"\xff\xd8")  # the PNG became a JPEG


def test_hold_out_keeps_groups_together(frames):
    kept, held = read_table(frames, "labels.csv").hold_out(0.5)
    assert not set(kept.groups()) & set(held.groups())
    assert (len(kept), len(held)) == (4, 4)
    with pytest.raises(DataError, match="every group is larger"):
        read_table(frames, "labels.csv").hold_out(0.1)


def test_a_list_selects_rows_in_its_order(frames):
    (frames / "some.txt").write_text("frame5\nframe1\n\n")
    assert [row.key for row in read_table(frames, "labels.csv", only="some.txt").rows] == ["frame5", "frame1"]
    (frames / "some.txt").write_text("frame9\n")
    with pytest.raises(DataError, match="1 keys are not in .*first 'frame9'"):
        read_table(frames, "labels.csv", only="some.txt")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("key,label,group\nframe0,maybe,v\n", "row 'frame0': label is 'maybe'; wanted 1/true/yes/smoke"),
        ("key,label\nframe0,1\n", "row 'frame0': no 'group'; it has .*--group-column"),
        ("key,label,group\nnone,1,v\n", "row 'none': no image .*none with ending .jpg"),
        ("image,label,group\nimages/gone.jpg,1,v\n", "gone.jpg: file is missing"),
        ("label,group\n1,v\n", "line 2: neither 'key' nor 'image'"),
    ],
)
def test_a_wrong_table_is_told_with_its_row(frames, table, message):
    (frames / "t.csv").write_text(table)
    with pytest.raises(DataError, match=message):
        read_table(frames, "t.csv")


def test_missing_and_broken_tables_are_told(frames):
    with pytest.raises(DataError, match="gone.csv: file is missing"):
        read_table(frames, "gone.csv")
    (frames / "t.json").write_text("{")
    with pytest.raises(DataError, match="t.json: not json"):
        read_table(frames, "t.json")


def test_masks_of_another_size_or_class_are_told_with_the_sample(frames):
    source = replace(read_table(frames, "labels.csv"), with_masks=True)
    Image.fromarray(np.ones((5, 8), dtype=np.uint8)).save(frames / "masks/frame0.png")
    with pytest.raises(DataError, match=r"sample 'frame0': mask is \(5, 8\), image is \(6, 8\)"):
        write_split(source, frames / "out", "val", "pixel")
    Image.fromarray(np.full((6, 8), 7, dtype=np.uint8)).save(frames / "masks/frame0.png")
    with pytest.raises(DataError, match=r"sample 'frame0': mask holds class ids \[7\]"):
        write_split(source, frames / "out", "val", "pixel")
    assert not (frames / "out").exists() or not list((frames / "out").iterdir())


@pytest.mark.real_data
def test_real_frames_become_group_disjoint_splits(real_data, tmp_path):
    options = {"group_column": "scene"}
    root = real_data / "smoke_mini"
    train, tune = read_table(root, "labels.json", only="splits/train_crops.txt", **options).hold_out(0.15)
    val = read_table(root, "labels.json", only="splits/val_crops.txt", **options)
    few = {"tune": replace(tune, rows=tune.rows[:40]), "val": replace(val, rows=val.rows[:40])}
    write_split(replace(train, rows=train.rows[:60]), tmp_path, "train", "label")
    for split, source in few.items():
        write_split(replace(source, with_masks=True), tmp_path, split, "pixel")
    assert Index.load(tmp_path / "train").supervision == "label"
