import json
import shutil
from functools import partial

import numpy as np
import pytest
from PIL import Image
from support.command import wsss

from shards.folder import ShardFolder
from shards.index import Index
from shards.schema import DataError
from shards.sources.images import parse_classes, read_images

NAMES = ["a", "b", "c", "d", "e", "f"]
LABELS = {"a": ["cat", "dog"], "b": ["dog"], "c": [], "d": ["cat"], "e": ["person"], "f": ["person", "cat"]}
IDS = {"a": (1, 2), "b": (2,), "c": (), "d": (1,), "e": (3,), "f": (1, 3)}  # cat, dog, person


@pytest.fixture
def pets(tmp_path):
    """Six images below photos/."""
    (tmp_path / "photos").mkdir()
    for n, name in enumerate(NAMES):
        Image.new("RGB", (8, 6), (40 * n, 0, 0)).save(tmp_path / f"photos/{name}.jpg")
    return tmp_path


def write_csv(root, header, lines, name="t.csv"):
    (root / name).write_text("\n".join((header, *lines)) + "\n")
    return name


def in_one_column(root, labels=LABELS):
    lines = [f"photos/{name}.jpg,{';'.join(found) or 'background'}" for name, found in labels.items()]
    return write_csv(root, "image,labels", lines)


def in_columns(root):
    marks = {name: [int(one in found) for one in ("dog", "cat", "person")] for name, found in LABELS.items()}
    lines = [f"photos/{name}.jpg,{','.join(map(str, found))}" for name, found in marks.items()]
    return write_csv(root, "image,dog,cat,person", lines)


def in_json(root):
    (root / "t.json").write_text(json.dumps({f"photos/{name}.jpg": found for name, found in LABELS.items()}))
    return "t.json"


def in_coco(root, change=lambda content: None):
    """COCO's json without sizes and regions; ids in another order than the names."""
    ids = {"person": 1, "cat": 17, "dog": 18}
    pairs = [(n, ids[one]) for n, name in enumerate(NAMES) for one in LABELS[name]]
    content = {
        "images": [{"id": n, "file_name": f"photos/{name}.jpg", "scene": f"s{n // 2}"} for n, name in enumerate(NAMES)],
        "categories": [{"id": number, "name": one} for one, number in ids.items()],
        "annotations": [{"id": k, "image_id": n, "category_id": one} for k, (n, one) in enumerate(pairs)],
    }
    change(content)
    (root / "coco.json").write_text(json.dumps(content))
    return "coco.json"


def read(root, labels, classes=("cat", "dog", "person"), **options):
    return read_images(root, labels, classes=classes, **options)


def labels_of(found):
    return {row.key.removeprefix("photos_"): row.image_label for row in found.source.rows}


@pytest.mark.parametrize("form", [in_one_column, in_columns, in_json, in_coco])
def test_every_form_of_labels_says_the_same(pets, form):
    found = read(pets, form(pets))
    assert labels_of(found) == IDS
    assert found.source.class_set.classes == ("cat", "dog", "person")
    assert found.grouped_by == "each image is its own group" and len({*found.source.groups()}) == 6


def test_a_folder_per_class_is_read_and_background_is_no_class(pets):
    for name, found in LABELS.items():
        if len(found) < 2:
            folder = pets / "tree" / (found or ["background"])[0]
            folder.mkdir(parents=True, exist_ok=True)
            (pets / f"photos/{name}.jpg").rename(folder / f"{name}.jpg")
    found = read(pets / "tree", None, None)
    assert found.source.class_set.classes == ("cat", "dog", "person")
    assert {row.key: row.image_label for row in found.source.rows} == {
        "background_c": (),
        "cat_d": (1,),
        "dog_b": (2,),
        "person_e": (3,),
    }
    with pytest.raises(DataError, match="tree: 1 images are in no folder of a class, first x.jpg"):
        Image.new("RGB", (8, 6)).save(pets / "tree/x.jpg")
        read(pets / "tree", None, None)


def test_without_classes_all_names_count_sorted_and_of_coco_those_of_its_categories_by_id(pets):
    assert read(pets, in_one_column(pets), None).source.class_set.classes == ("cat", "dog", "person")
    found = read(pets, in_coco(pets), None)
    assert found.source.class_set.classes == ("person", "cat", "dog")
    assert labels_of(found)["f"] == (1, 2)


def test_groups_come_from_a_column_or_a_pattern(pets):
    assert read(pets, in_coco(pets), group_column="scene").source.groups() == ["s0", "s0", "s1", "s1", "s2", "s2"]
    write_csv(pets, "image,labels,group", ["photos/a.jpg,cat,one", "photos/b.jpg,dog,two"])
    assert read(pets, "t.csv").source.groups() == ["one", "two"]
    assert read(pets, "t.csv", group_pattern=r"photos/(.)").source.groups() == ["a", "b"]
    wrong = {r"cam(\d)": "row 'photos/a.jpg': does not match", "x": "no group", "(": "is not a regular"}
    for pattern, message in wrong.items():
        with pytest.raises(DataError, match=message):
            read(pets, "t.csv", group_pattern=pattern)


@pytest.mark.parametrize(
    ("header", "line", "message"),
    [
        ("image,labels", "photos/a.jpg,", "row 'photos/a.jpg': labels is empty .*'background'.*--empty"),
        ("image,labels", "photos/a.jpg,cat;dgo", "1 names of labels are no class: 'dgo' in 1 .did you mean 'dog'"),
        ("image,labels", "photos/a.jpg,cat;background", "names 'background' beside cat"),
        ("image,tags", "photos/a.jpg,cat", r"no column 'labels', and none of \['cat', 'dog'.*tags"),
        ("image,cat,dog", "photos/a.jpg,1,0", r"no column 'labels', and none of \['person'\]"),
        ("image,cat,dog,person", "photos/a.jpg,1,0,2", "row 'photos/a.jpg': person is '2'; wanted 1/true/yes"),
        ("image,cat,dog,person", "photos/a.jpg,1,0,", "person is empty"),
        ("image,labels", "photos/gone.jpg,cat", "gone.jpg: file is missing"),
    ],
)
def test_a_wrong_row_is_told(pets, header, line, message):
    write_csv(pets, header, [line])
    with pytest.raises(DataError, match=message):
        read(pets, "t.csv")


def test_two_spellings_of_a_class_are_told(pets):
    write_csv(pets, "image,labels", ["photos/a.jpg,cat", "photos/b.jpg,Cat"])
    with pytest.raises(DataError, match="'Cat' and 'cat' differ only in capital letters"):
        read(pets, "t.csv", None)


def test_empty_cells_are_background_or_left_out_only_if_asked_for(pets):
    write_csv(pets, "image,labels", ["photos/a.jpg,cat", "photos/b.jpg,"])
    assert labels_of(read(pets, "t.csv", empty="background")) == {"a": (1,), "b": ()}
    found = read(pets, "t.csv", empty="skip")
    assert labels_of(found) == {"a": (1,)} and found.skipped == 1
    write_csv(pets, "image,cat,dog,person", ["photos/a.jpg,1,,0", "photos/b.jpg,1,0,0"])
    assert labels_of(read(pets, "t.csv", empty="background")) == {"a": (1,), "b": (1,)}
    assert labels_of(read(pets, "t.csv", empty="skip")) == {"b": (1,)}


def test_classes_that_are_not_wanted_are_left_out_only_if_asked_for(pets):
    found = read(pets, in_coco(pets), ("cat", "dog"), drop_others=True)
    assert found.dropped == {"person": 2} and labels_of(found)["e"] == ()
    with pytest.raises(DataError, match="'person' in 2 .*--drop-others"):
        read(pets, in_coco(pets), ("cat", "dog"))


def test_what_only_a_crowd_shows_is_in_no_label_and_wrong_annotations_are_told(pets):
    def crowded(content):
        content["annotations"][0]["iscrowd"] = 1  # the cat of a

    assert labels_of(read(pets, in_coco(pets, crowded)))["a"] == (2,)
    with pytest.raises(DataError, match="is of image 77 and category"):
        read(pets, in_coco(pets, lambda c: c["annotations"][0].update(image_id=77)))
    with pytest.raises(DataError, match=r"annotations\[0\] lacks category_id"):
        read(pets, in_coco(pets, lambda c: c["annotations"][0].pop("category_id")))


def test_names_that_another_separator_joins_are_no_class(pets):
    write_csv(pets, "image;labels", ["photos/a.jpg;cat,dog", "photos/b.jpg;cat", "photos/c.jpg;dog"])
    with pytest.raises(DataError, match="'cat,dog' in 1 rows looks like several names .*--separator ','"):
        read(pets, "t.csv", None)
    with pytest.raises(DataError, match="'cat,dog' in 1 .several names. --separator ','"):
        read(pets, "t.csv", ("cat", "dog"))
    assert labels_of(read(pets, "t.csv", None, separator=","))["a"] == (1, 2)
    write_csv(pets, "image;labels", ["photos/a.jpg;sea lion", "photos/b.jpg;lion"])  # an animal of its own
    assert labels_of(read(pets, "t.csv", None)) == {"a": (2,), "b": (1,)}


def test_an_image_that_is_not_in_the_root_is_told_with_the_folders_there(pets):
    write_csv(pets, "image,labels", ["a.jpg,cat"])
    with pytest.raises(
        DataError, match=r"a.jpg: file is missing; .*in one of its folders \(photos\)\? See --image-folder"
    ):
        read(pets, "t.csv", None)


shards_images = partial(wsss, "shards", "images", "--workers", 1)


def test_the_command_writes_both_splits_counts_every_class_and_keeps_groups_apart(pets):
    many = {f"{name}{n}": LABELS[name] for n in range(4) for name in NAMES}
    for name in many:
        Image.new("RGB", (8, 6)).save(pets / f"photos/{name}.jpg")
    lines = [f"photos/{name}.jpg,{';'.join(found) or 'background'},{name[1]}" for name, found in many.items()]
    table = write_csv(pets, "image,labels,scene", lines)
    own = ("--root", pets, "--labels", table, "--group-column", "scene", "--out", pets / "out", "--split", "train")
    said = shards_images(*own, "--classes", "person,dog,cat", "--hold-out", 0.3)
    assert "24 images of 4 groups: by the column 'scene'" in said
    assert "18 images (person in 6, dog in 6, cat in 9)" in said and "3 of 18 images show none" in said
    train, val = (Index.load(pets / "out" / split) for split in ("train", "val"))
    assert train.classes == val.classes == ("person", "dog", "cat") and not train.groups & val.groups
    assert train.supervision == val.supervision == "label" and val.num_samples == 6
    write_csv(pets, "image,labels,group", ["photos/a.jpg,cat,9"], "test.csv")  # in it a class has the id it has there
    more = ("--labels", "test.csv", "--out", pets / "out", "--split", "more", "--may-lack-classes")
    shards_images("--root", pets, *more)
    assert ShardFolder(pets / "out/more").index.class_counts() == {"person": 0, "dog": 0, "cat": 1}
    assert "already exists, made of" in shards_images("--root", pets, *more)
    with pytest.raises(DataError, match="out/more: no image is labelled person, dog among 1"):
        shards_images("--root", pets, *more[:-1])  # as it would have been refused the first time


def test_splits_of_one_table_are_written_all_or_none(pets):
    arguments = ("--root", pets, "--labels", in_one_column(pets), "--out", pets / "out", "--hold-out", 0.5)
    shards_images(*arguments, "--split", "train")
    damaged = ShardFolder(pets / "out/train").keys[0].removeprefix("photos_")
    with pytest.raises(DataError, match="out/train: exists already, made of something else .samples: 3, now 5;"):
        shards_images(*arguments[:-2], "--hold-out", "new=0.3", "--split", "train")
    assert not (pets / "out/new").exists()
    shutil.rmtree(pets / "out/train")  # as if the command had been killed before it wrote the second one
    said = shards_images(*arguments, "--split", "train")
    assert "out/val: already exists, made of the same files" in said and "out/train: already" not in said
    assert shards_images(*arguments, "--split", "train").count("already exists, made of") == 2
    shutil.rmtree(pets / "out")
    whole = (pets / f"photos/{damaged}.jpg").read_bytes()
    (pets / f"photos/{damaged}.jpg").write_bytes(whole[:100])
    with pytest.raises(DataError, match="write train: 1 of "):
        shards_images(*arguments, "--split", "train")
    assert not (pets / "out/val").exists()
    (pets / f"photos/{damaged}.jpg").write_bytes(whole)
    shards_images(*arguments, "--split", "train")
    assert {path.name for path in (pets / "out").iterdir() if path.is_dir()} == {"train", "val"}


def test_masks_of_several_classes_are_read_for_the_held_out_split_alone(pets):
    (pets / "masks/photos").mkdir(parents=True)
    for name, ids in IDS.items():
        mask = np.zeros((6, 8), dtype=np.uint8)
        for row, class_id in enumerate(ids):
            mask[row] = class_id
        if ids:
            Image.fromarray(mask).save(pets / f"masks/photos/{name}.png")
    arguments = ("--root", pets, "--labels", in_one_column(pets), "--out", pets / "out", "--masks")
    shards_images(*arguments, "--split", "train", "--hold-out", "tune=0.5")
    train, tune = (ShardFolder(pets / "out" / split) for split in ("train", "tune"))
    assert (train.index.supervision, tune.index.supervision) == ("label", "pixel")
    assert train.image_label_NK.any(axis=0).all() and tune.image_label_NK.any()
    for number, key in enumerate(tune.keys):
        assert {*np.unique(tune.mask(number))} - {0} == {*IDS[key.removeprefix("photos_")]}
    said = shards_images(*arguments[:-3], "--out", pets / "no_masks", "--split", "train")
    assert "5 images have a mask; pass --masks" in said
    (pets / "masks/photos/a.png").unlink()
    with pytest.raises(DataError, match="1 of 5 frames labelled with a class have no mask, first 'photos_a'"):
        shards_images(*arguments, "--split", "val2")
    with pytest.raises(DataError, match="--hold-out 0.5: 'val' is named in --hold-out and in --split"):
        shards_images(*arguments, "--split", "val", "--hold-out", 0.5)


def test_what_is_left_out_of_folders_of_classes_and_copies_are_told(pets, capsys):
    for name in ("cat", "dog"):
        (pets / f"sorted/{name}").mkdir(parents=True)
        shutil.copy(pets / "photos/a.jpg", pets / f"sorted/{name}/1.jpg")
    (pets / "sorted/dog/2.webp").write_bytes(b"?")
    said = shards_images("--root", pets / "sorted", "--out", pets / "out", "--split", "train")
    assert "1 files whose name ends with none of .jpg, .jpeg, .png are left out, first dog/2.webp" in said
    assert "1 images occur more than once (1 of them with different labels), first 'cat_1' and 'dog_1'" in said


def test_one_folder_alone_is_no_label(pets):
    with pytest.raises(DataError, match="all 6 images are in the folder 'photos'; wanted one folder for each class"):
        read(pets, None, None)


def test_classes_are_named_in_the_option_in_a_file_or_by_the_splits_that_are_there(pets):
    (pets / "classes.txt").write_text("traffic light\ncat\n")
    assert parse_classes(str(pets / "classes.txt"), pets) == ("traffic light", "cat")
    assert parse_classes("cat, dog", pets) == ("cat", "dog") and parse_classes(None, pets) is None
    with pytest.raises(DataError, match="'cat' is listed twice"):
        parse_classes("cat,cat", pets)
