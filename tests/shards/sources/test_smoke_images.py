import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from shards.index import Index
from shards.schema import DataError
from shards.sources.held_out import hold_out
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
    assert [row.image_label for row in from_csv.rows] == [(1,)] * 4 + [()] * 4
    assert from_csv.groups() == ["video0", "video0", "video1", "video1", "video2", "video2", "video3", "video3"]


def test_an_image_column_names_the_file_and_subfolders_become_part_of_the_key(frames):
    (frames / "images/cam 1").mkdir()
    (frames / "images/frame0.jpg").rename(frames / "images/cam 1/a.b.jpg")
    (frames / "t.csv").write_text("image,label,group\nimages/cam 1/a.b.jpg,smoke,v\n")
    (row,) = read_table(frames, "t.csv").rows
    assert (row.key, row.image_label, row.mask) == ("images_cam_1_a_b", (1,), None)


def test_frames_without_smoke_need_no_mask_file(frames):
    source = replace(read_table(frames, "labels.csv"), with_masks=True)
    index = write_split(source, frames / "out", "val", "pixel")
    assert index.num_samples == 8 and index.class_counts() == {"smoke": 4}
    assert source[0].mask.sum() == 16 and source[7].mask.sum() == 0
    assert source[3].image.startswith(b"\xff\xd8")  # the PNG became a JPEG


def test_a_list_selects_rows_in_its_order(frames):
    (frames / "some.txt").write_text("frame5\nframe1\n\n")
    assert [row.key for row in read_table(frames, "labels.csv", only="some.txt").rows] == ["frame5", "frame1"]
    (frames / "some.txt").write_text("frame9\n")
    with pytest.raises(DataError, match="1 keys are not in .*first 'frame9'; the first of the table is 'frame0'$"):
        read_table(frames, "labels.csv", only="some.txt")


def test_a_column_says_of_which_split_a_row_is(frames):
    lines = [f"frame{n},{n % 2},v{n},{'train' if n < 4 else 'valid'}" for n in range(8)]
    (frames / "t.csv").write_text("\n".join(["key,label,group,split", *lines]))
    keys = [
        [row.key for row in read_table(frames, "t.csv", split=split, split_column=column).rows]
        for split, column in (("train", "split"), ("val", "split=valid"))
    ]
    assert keys == [[f"frame{n}" for n in range(4)], [f"frame{n}" for n in range(4, 8)]]
    with pytest.raises(DataError, match="'train' in 4 rows, 'valid' in 4 rows; wanted only 'train'"):
        read_table(frames, "t.csv", split="train")  # else what is judged on would be learned from
    with pytest.raises(DataError, match="wanted only 'val': .*--split-column split=NAME"):
        read_table(frames, "t.csv", split="val")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("key,label,group\nframe0,maybe,v\n", "row 'frame0': label is 'maybe'; wanted 1/true/yes/smoke"),
        ("key,label\nframe0,1\n", "row 'frame0': no 'group'; it has .*--group-column"),
        ("key,label,group\nnone,1,v\n", "row 'none': no image .*none with ending .jpg"),
        ("image,label,group\nFrame1,1,v\n", "file is missing; wanted .*; did you mean images/frame1.jpg\\?$"),
        ("image,label,group\na.jpg,1,v\nframe1.jpg,1,v\nb.jpg,1,v\n", "row 'a.jpg': .*and so 1 more of 3 rows"),
        ("Image;Label;Group\nframe1,1,v\n", "among the columns of its first line, 'Image;Label;Group'.*small letters"),
        ("image,label,group\nimages/gone.jpg,1,v\n", "gone.jpg: file is missing; wanted a path below .* or .*/images"),
        ("label,group\n1,v\n", "t.csv: neither 'key' nor 'image'"),
    ],
)
def test_a_wrong_table_is_told_with_its_row(frames, table, message):
    (frames / "t.csv").write_text(table)
    with pytest.raises(DataError, match=message):
        read_table(frames, "t.csv")


def test_a_path_may_begin_below_root_or_below_the_image_folder(frames):
    name = next((frames / "images").glob("*.jpg")).name
    (frames / "t.csv").write_text(f"image,label,group\n{name},0,v\n")
    (row,) = read_table(frames, "t.csv").rows
    assert row.image == frames / "images" / name
    (frames / name).write_bytes(b"another")  # the whole path counts first
    (row,) = read_table(frames, "t.csv").rows
    assert row.image == frames / name


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
    assert not list((frames / "out").glob("[!.]*"))


@pytest.mark.real_data
def test_real_frames_become_group_disjoint_splits(real_data, tmp_path):
    options = {"group_column": "scene"}
    root = real_data / "smoke_mini"
    crops = read_table(root, "labels.json", only="splits/train_crops.txt", **options)
    train, held = hold_out(crops, {"tune": 0.15})
    val = read_table(root, "labels.json", only="splits/val_crops.txt", **options)
    few = {"tune": replace(held["tune"], rows=held["tune"].rows[:40]), "val": replace(val, rows=val.rows[:40])}
    write_split(replace(train, rows=train.rows[:60]), tmp_path, "train", "label")
    for split, source in few.items():
        write_split(replace(source, with_masks=True), tmp_path, split, "pixel")
    assert Index.load(tmp_path / "train").supervision == "label"


def table(frames, *lines, name="t.csv"):
    (frames / name).write_text("\n".join(("key,label,group", *lines)))
    return read_table(frames, name)


def test_a_frame_with_smoke_and_without_a_mask_is_refused_before_anything_is_written(frames):
    (frames / "masks/frame1.png").unlink()
    source = read_table(frames, "labels.csv")
    with pytest.raises(DataError, match="1 of 4 frames labelled smoke have no mask, first 'frame1' .*masks/frame1.png"):
        replace(source, with_masks=True)
    (frames / "masks/frame0.png").rename(frames / "masks/frame1.PNG")
    assert source.rows[1].mask is None and read_table(frames, "labels.csv").rows[1].mask == frames / "masks/frame1.PNG"


def test_names_with_dots_blanks_brackets_and_letters_beyond_ascii_are_read(frames):
    names = ["clip_12.5s", "clip_12.75s", "frame (1)", "cafe\u0301", "煙"]
    for n, name in enumerate(names):
        Image.new("RGB", (8, 6), (n, 0, 0)).save(frames / f"images/{name}.jpg")
        Image.new("L", (8, 6), 1).save(frames / f"masks/{name}.png")
    listed = [*names[:3], "caf\u00e9", names[4]]  # the table has composed letters, the disk (a Mac's zip) has not
    source = replace(table(frames, *(f"{name},1,v" for name in listed)), with_masks=True)
    assert [row.key for row in source.rows] == ["clip_12_5s", "clip_12_75s", "frame__1_", "caf_", "_"]
    assert write_split(source, frames / "out", "val", "pixel").class_counts() == {"smoke": 5}


def test_two_rows_of_one_file_and_two_files_of_one_row_are_refused(frames):
    with pytest.raises(DataError, match="'frame0' and 'frame0.jpg' would both have the key 'frame0'"):
        table(frames, "frame0,1,v", "frame0.jpg,1,v")
    (frames / "t.csv").write_text("key,image,label,group\na,images/frame0.jpg,1,v\nb,images/frame0.jpg,0,w\n")
    with pytest.raises(DataError, match="'a' and 'b' both lead to the image .*frame0.jpg"):
        read_table(frames, "t.csv")
    (frames / "t.csv").write_text("key,mask,label,group\nframe0,masks/frame1.png,1,v\nframe1,masks/frame1.png,1,v\n")
    with pytest.raises(DataError, match="'frame0' and 'frame1' both lead to the mask .*frame1.png"):
        read_table(frames, "t.csv")
    Image.new("RGB", (8, 6)).save(frames / "images/frame0.png")
    with pytest.raises(DataError, match="'images/frame0' may be images/frame0.jpg or images/frame0.png"):
        table(frames, "frame0,1,v")


def test_two_cameras_keep_their_masks_apart(frames):
    for camera in ("cam1", "cam2"):
        (frames / "frames" / camera).mkdir(parents=True)
        (frames / "masks/frames" / camera).mkdir(parents=True)
        Image.new("RGB", (8, 6)).save(frames / "frames" / camera / "0001.jpg")
        Image.new("L", (8, 6), 1).save(frames / "masks/frames" / camera / "0001.png")
    (frames / "t.csv").write_text("image,label,group\nframes/cam1/0001.jpg,1,v\nframes/cam2/0001.jpg,1,w\n")
    assert [row.mask.parent.name for row in read_table(frames, "t.csv").rows] == ["cam1", "cam2"]
    (frames / "masks/frames/cam1/0001.png").rename(frames / "masks/0001.png")
    (frames / "t.csv").write_text("image,label,group\nframes/cam1/0001.jpg,1,v\n")  # cam2's frame is of another table
    with pytest.raises(
        DataError, match="masks/0001.png may be the mask of 'frames/cam1/0001' or of 'frames/cam2/0001'"
    ):
        read_table(frames, "t.csv")


def test_an_empty_mask_cell_means_no_mask(frames):
    (frames / "t.csv").write_text("key,mask,label,group\nframe0,,1,v\nframe7,,0,w\n")
    source = read_table(frames, "t.csv")
    assert [row.mask for row in source.rows] == [None, None]
    with pytest.raises(DataError, match="1 of 1 frames labelled smoke have no mask, .*empty cell of column 'mask'"):
        replace(source, with_masks=True)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("frame0,,v", "row 'frame0': label is empty"),
        ("frame0,nan,v", "row 'frame0': label is empty"),
        ("frame0,1.0,v", "row 'frame0': label is '1.0'; wanted 1/true/yes/smoke"),
        ("frame0,1,", "row 'frame0': group is empty"),
        ("frame0,1,v\nframe0,0,v", "'frame0' is listed twice"),
    ],
)
def test_no_cell_has_a_default_and_no_row_comes_twice(frames, row, message):
    with pytest.raises(DataError, match=message):
        table(frames, row)
