import json
import pickle

import numpy as np
import pytest
from PIL import Image
from support.command import wsss

from shards.schema import DataError
from shards.sources.smoke5k import read_smoke5k, smoke_mask
from shards.write import write_split

NAMES = ["1_10", "1_11", "cam 2.a", "4_7"]


@pytest.fixture
def root(tmp_path):
    """Four 6 x 8 frames: smoke in 2, 1 and 0 rows; the last mask is an RGB file. One image is a PNG."""
    for folder in ("img", "gt"):
        (tmp_path / folder).mkdir()
    for number, name in enumerate(NAMES):
        image_HW3 = np.full((6, 8, 3), 40 * number, dtype=np.uint8)
        Image.fromarray(image_HW3).save(tmp_path / "img" / f"{name}.{'png' if number == 1 else 'jpg'}")
        truth_HW = np.zeros((6, 8), dtype=np.uint8)
        truth_HW[: max(0, 2 - number)] = 255
        truth = Image.fromarray(truth_HW)
        (truth.convert("RGB") if number == 3 else truth).save(tmp_path / "gt" / f"{name}.png")
    return tmp_path


def test_the_label_of_an_image_is_whether_its_mask_shows_smoke(root):
    source = read_smoke5k(root, with_masks=True)
    samples = {sample.key: sample for sample in (source[n] for n in range(4))}
    assert {key: sample.image_label for key, sample in samples.items()} == {
        "1_10": (1,),
        "1_11": (1,),
        "4_7": (),
        "cam_2_a": (),
    }
    assert samples["1_10"].mask.sum() == 16 and samples["1_11"].mask.sum() == 8 and samples["4_7"].mask.sum() == 0
    assert all(sample.image.startswith(b"\xff\xd8") for sample in samples.values())


def test_label_only_shards_hold_no_mask_and_pixel_shards_do(root):
    assert write_split(read_smoke5k(root), root / "out", "train", "label").class_counts() == {"smoke": 2}
    with pytest.raises(DataError, match="shares 4 groups with split 'train'"):
        write_split(read_smoke5k(root, with_masks=True), root / "out", "val", "pixel")
    assert write_split(read_smoke5k(root, with_masks=True), root / "new", "val", "pixel").supervision == "pixel"


def test_grey_levels_are_cut_at_128_and_ids_stay():
    assert smoke_mask(np.array([[0, 127, 128, 255]], dtype=np.uint8)).tolist() == [[0, 0, 1, 1]]
    assert smoke_mask(np.array([[0, 1, 1, 0]], dtype=np.uint8)).tolist() == [[0, 1, 1, 0]]
    assert smoke_mask(np.zeros((1, 3), dtype=np.uint8)).tolist() == [[0, 0, 0]]


def test_without_a_table_each_image_is_its_own_group_since_names_tell_no_scene(root):
    assert read_smoke5k(root).groups() == sorted(NAMES)


def test_a_table_of_groups_keeps_scenes_together(root):
    (root / "g.json").write_text(json.dumps({"1_10": "a", "1_11.png": "b", "cam 2.a": "a", "4_7": "c"}))
    (root / "g.csv").write_text("key,group\n1_10,a\n1_11,b\ncam 2.a,a\n4_7,c\n")
    for name in ("g.json", "g.csv"):
        assert read_smoke5k(root, groups=root / name).groups() == ["a", "b", "c", "a"]
    (root / "train.txt").write_text("1_10\n1_11\n")
    (root / "val.txt").write_text("cam 2.a.jpg\n4_7\n")
    train, val = (read_smoke5k(root, groups=root / "g.csv", only=root / f"{n}.txt") for n in ("train", "val"))
    write_split(train, root / "out", "train", "label")
    with pytest.raises(DataError, match="shares 1 groups with split 'train' .*first 'a'"):
        write_split(val, root / "out", "val", "label")
    (root / "g.csv").write_text("key,group\n1_10,a\n")
    with pytest.raises(DataError, match="g.csv: 3 of 4 images have no group, first '1_11'"):
        read_smoke5k(root, groups=root / "g.csv")
    (root / "g.json").write_text('{"1_10": ""}')
    with pytest.raises(DataError, match="'1_10': group is empty"):
        read_smoke5k(root, groups=root / "g.json")


def test_a_list_takes_names_with_or_without_ending_in_its_order(root):
    (root / "some.txt").write_text("4_7.jpg\ncam 2.a\n\n")
    assert [key for key, *_ in read_smoke5k(root, only=root / "some.txt").pairs] == ["4_7", "cam_2_a"]
    (root / "some.txt").write_text("nothing\n")
    with pytest.raises(DataError, match="img: 1 of 1 images are not here, first 'nothing'"):
        read_smoke5k(root, only=root / "some.txt")


def test_missing_masks_folders_and_lists_are_told(root):
    (root / "gt/1_11.png").unlink()
    with pytest.raises(DataError, match="gt: 1 of 4 images are not here, first '1_11'"):
        read_smoke5k(root)
    with pytest.raises(DataError, match="masks: folder is missing"):
        read_smoke5k(root, mask_folder="masks")
    with pytest.raises(DataError, match="gone.txt: file is missing"):
        read_smoke5k(root, only=root / "gone.txt")
    (root / "empty").mkdir()
    with pytest.raises(DataError, match="empty: holds no image"):
        read_smoke5k(root, image_folder="empty")


def test_coloured_lossy_and_wrongly_sized_masks_are_told(root):
    source = read_smoke5k(root, with_masks=True)
    Image.fromarray(np.tile(np.array([255, 0, 0], dtype=np.uint8), (6, 8, 1))).save(root / "gt/1_10.png")
    with pytest.raises(DataError, match="1_10.png: mask is a colour image"):
        source[0]
    Image.fromarray(np.zeros((6, 8), dtype=np.uint8)).save(root / "gt/1_10.png", format="JPEG")
    with pytest.raises(DataError, match="1_10.png: mask is not a PNG"):
        source[0]
    for size in (20, 40):
        (root / "gt/1_10.png").write_bytes((root / "gt/1_11.png").read_bytes()[:size])
        with pytest.raises(DataError, match="1_10.png: mask does not decode"):
            source[0]
    Image.fromarray(np.full((5, 8), 255, dtype=np.uint8)).save(root / "gt/1_10.png")
    with pytest.raises(DataError, match=r"sample '1_10': mask is \(5, 8\), image is \(6, 8\)"):
        write_split(source, root / "out", "val", "pixel")


def test_the_source_goes_to_worker_processes(root):
    source = read_smoke5k(root)
    assert pickle.loads(pickle.dumps(source)).pairs == source.pairs


@pytest.mark.parametrize("table", [None, "g.csv"])
def test_the_command_warns_of_near_duplicates_unless_it_knows_the_scenes(root, table):
    (root / "g.csv").write_text("key,group\n" + "".join(f"{name},a\n" for name in NAMES))
    place = ["--root", root, "--out", root / "out", "--split", "train", *(["--groups", root / table] if table else [])]
    said = wsss("shards", "smoke5k", *place, "--workers", 1)
    assert f"4 images (smoke in 2) of {1 if table else 4} groups" in said
    assert ("warning: SMOKE5K names no scenes" in said) == (table is None)


@pytest.mark.real_data
def test_real_pairs_give_labels_that_their_own_table_confirms(real_data, tmp_path):
    root = real_data / "smoke_mini"
    items = json.loads((root / "labels.json").read_text())["items"]
    names = [*list(items)[:20], *[key for key in items if not items[key]["label"]][:20]]
    (tmp_path / "some.txt").write_text("\n".join(names))
    source = read_smoke5k(root, only=tmp_path / "some.txt", image_folder="images", mask_folder="masks")
    assert [len(source[n].image_label) for n in range(40)] == [items[name]["label"] for name in names]


def test_levels_that_mean_nothing_and_masks_without_an_image_are_refused(root):
    for levels in ([0, 100], [0, 2], [0, 1, 2]):
        with pytest.raises(DataError, match="a.png: holds the values .*; wanted grey levels of which smoke has 128"):
            smoke_mask(np.array([levels], dtype=np.uint8), "a.png")
    assert smoke_mask(np.array([[0, 1, 255]], dtype=np.uint8)).tolist() == [[0, 1, 255]]
    Image.new("L", (8, 6)).save(root / "gt/alone.png")
    with pytest.raises(DataError, match="gt: 1 masks have no image in .*img .*first 'alone.png'"):
        read_smoke5k(root)


def test_folders_are_part_of_a_name_and_groups_come_once(root):
    for folder in ("img", "gt"):
        (root / folder / "cam1").mkdir()
    Image.new("RGB", (8, 6)).save(root / "img/cam1/4_7.jpg")
    Image.new("L", (8, 6), 255).save(root / "gt/cam1/4_7.png")
    source = read_smoke5k(root)
    assert [key for key, *_ in source.pairs][-1] == "cam1_4_7" and source[4].image_label == (1,)
    (root / "some.txt").write_text("img/cam1/4_7.jpg\n4_7\n")
    assert [key for key, *_ in read_smoke5k(root, only=root / "some.txt").pairs] == ["cam1_4_7", "4_7"]
    (root / "some.txt").write_text("other/4_7.jpg\n")
    with pytest.raises(DataError, match="1 of 1 images are not here, first 'other/4_7'"):
        read_smoke5k(root, only=root / "some.txt")
    (root / "g.csv").write_text("key,group\n1_10,a\n1_10,b\n")
    with pytest.raises(DataError, match="'1_10' is listed twice"):
        read_smoke5k(root, groups=root / "g.csv")
    (root / "g.csv").write_text("key,group\n1_10,a\n1_10.png,b\n")
    with pytest.raises(DataError, match="'1_10.png' occurs twice, with and without its ending"):
        read_smoke5k(root, groups=root / "g.csv")
