"""VOC 2012 and COCO sources on real files."""

import json
from itertools import chain

import numpy as np
import pytest
from PIL import Image

from shards.folder import ShardFolder
from shards.sources.archives import Blob
from shards.sources.coco14 import read_coco
from shards.sources.coco_files import find_files as find_coco
from shards.sources.coco_files import list_images
from shards.sources.voc12 import read_voc12
from shards.sources.voc_files import find_files as find_voc
from shards.verify import verify
from shards.write import write_split

pytestmark = pytest.mark.real_data


def test_the_small_voc_becomes_shards_that_share_no_photograph(real_data, tmp_path):
    files = find_voc([real_data / "voc_mini"], tmp_path)
    train = read_voc12(files, "train", list_file="train_aug_permissive.txt")
    val = read_voc12(files, "val", with_masks=True)
    index = write_split(train, tmp_path, "train", "label", num_shards=2, may_lack_classes=True)
    assert (index.num_samples, write_split(val, tmp_path, "val", "pixel", num_shards=2).num_samples) == (207, 150)
    photographs = json.loads((real_data / "voc_mini/labels.json").read_text())["meta"]
    of_group = {}
    for picture in chain(train.pictures, val.pictures):
        of_group.setdefault(picture.group, set()).add(photographs[picture.key]["coco_file"])
    assert all(len(files) == 1 for files in of_group.values())
    assert verify(tmp_path / "train") == index and not index.groups & verify(tmp_path / "val").groups


def test_labels_of_the_small_voc_are_those_of_its_table_and_of_small_objects(real_data, tmp_path):
    """The table names a class from 25 pixels on."""
    table = json.loads((real_data / "voc_mini/labels.json").read_text())["label_ids"]
    source = read_voc12(find_voc([real_data / "voc_mini"], tmp_path), "val", with_masks=True)
    for sample in source:
        more = set(sample.image_label) - set(table[sample.key])
        assert set(table[sample.key]) <= set(sample.image_label)
        assert all((sample.mask == class_id).sum() < 25 for class_id in more)


def test_true_voc_images_keep_their_size_their_bytes_and_their_masks(real_data, tmp_path):
    root = real_data / "voc_real10"
    ids = sorted(path.stem for path in (root / "JPEGImages").iterdir())
    (tmp_path / "ten.txt").write_text("\n".join(ids))
    source = read_voc12(find_voc([root], tmp_path), "val", list_file=str(tmp_path / "ten.txt"), with_masks=True)
    write_split(source, tmp_path, "val", "pixel", num_shards=2)
    folder = ShardFolder(tmp_path / "val")
    assert sorted(folder.keys) == ids
    for number, key in enumerate(folder.keys):
        assert folder.read(number, "jpg") == (root / f"JPEGImages/{key}.jpg").read_bytes()
        with Image.open(root / f"SegmentationClassAug/{key}.png") as mask:
            assert (folder.mask(number) == np.asarray(mask)).all()
    assert folder.about(folder.number_of_key["2007_000032"])["image_label"] == [1, 15]
    assert folder.about(folder.number_of_key["2007_000129"])["size"] == [500, 334]


@pytest.mark.parametrize(("name", "taken", "left_out"), [("coco_tiny_a", 30, 2), ("coco_tiny_b", 126, 2)])
def test_small_cocos_have_80_classes_crowds_and_images_without_annotation(real_data, tmp_path, name, taken, left_out):
    found = find_coco([real_data / name])
    annotations = found.annotations["train2017"]
    source = read_coco(annotations, found.images["train2017"], tmp_path / "lines", with_masks=True)
    assert (len(source), source.left_out, source.class_set.name, source.class_set.num_fg_classes) == (
        taken,
        left_out,
        "coco14",
        80,
    )
    annotated, crowds = annotations_of(annotations)
    for number in range(0, len(source), 3):
        sample = source[number]
        assert set(sample.image_label) <= annotated[sample.group]
        assert (255 in sample.mask) <= (sample.group in crowds)
    assert write_split(source, tmp_path, "val", "pixel", num_shards=4) == verify(tmp_path / "val")


def annotations_of(annotations):
    """{image id: class ids of its objects}, image ids that have a crowd."""
    content = json.loads(annotations.read())
    class_ids = {one: n + 1 for n, one in enumerate(sorted(row["id"] for row in content["categories"]))}
    objects = {str(row["id"]): set() for row in content["images"]}
    crowds = set()
    for row in content["annotations"]:
        if row["iscrowd"]:
            crowds.add(str(row["image_id"]))
        else:
            objects[str(row["image_id"])].add(class_ids[row["category_id"]])
    return objects, crowds


def test_painted_by_area_real_images_hide_no_class_and_no_painting_takes_one_from_a_label(real_data, tmp_path):
    root = real_data / "coco_tiny_b"
    annotations, images = Blob(str(root / "annotations/instances_train2017.json")), list_images(root / "train2017")
    annotated, _ = annotations_of(annotations)
    hidden = {}
    for paint in ("order", "area"):
        source = read_coco(annotations, images, tmp_path / paint, paint=paint)
        samples = [source[n] for n in range(len(source))]
        assert all(annotated[sample.group] == set(sample.image_label) for sample in samples)
        hidden[paint] = sum(bool(sample.hidden) for sample in samples)
    assert hidden == {"order": 8, "area": 0}  # of 126
