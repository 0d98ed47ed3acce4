import io
import json
import zipfile
from functools import partial

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as codes
from support.command import wsss

from shards.folder import ShardFolder
from shards.image_bytes import encode_image
from shards.index import Index
from shards.schema import DataError
from shards.sources.archives import Blob
from shards.sources.coco14 import painted, read_coco
from shards.sources.coco_files import files_of, find_files, list_images
from shards.sources.coco_regions import runs_of

CATEGORIES = [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 13, "name": "stop sign"}]
# by the order of the ids: person 1, stop sign 2, toothbrush 3


def box(y0, y1, x0, x1):
    """A polygon that covers the pixels of a box, half-open."""
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def inside(y0, y1, x0, x1, size=(6, 8)):
    mask_HW = np.zeros(size, dtype=np.uint8)
    mask_HW[y0:y1, x0:x1] = 1
    return mask_HW


def counts_of(mask_HW):
    """An uncompressed run-length code: runs of 0 and 1 in columns, 0 first."""
    flat = mask_HW.flatten(order="F").tolist()
    counts, value = [0], 0
    for pixel in flat:
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"size": list(mask_HW.shape), "counts": counts}


def annotation(number, image_id, category_id, segmentation, crowd=0):
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": segmentation,
        "iscrowd": crowd,
    }


def instances(year, split, first):
    """Three images: a person with a crowd beside, one without any annotation, one of a toothbrush."""
    ids = [first, first + 1, first + 2]
    prefix = f"COCO_{split}{year}_" if year == 2014 else ""
    return {
        "images": [{"id": n, "file_name": f"{prefix}{n:012d}.jpg", "height": 6, "width": 8} for n in ids],
        "categories": CATEGORIES,
        "annotations": [
            annotation(10, first, 1, box(0, 2, 0, 4)),
            annotation(11, first, 13, counts_of(inside(1, 4, 2, 8)), crowd=1),
            annotation(12, first + 2, 90, box(3, 6, 5, 8)),
        ],
    }


def picture(number):
    return encode_image(np.full((6, 8, 3), number % 250, dtype=np.uint8))


def coco_files(year, splits=("train", "val")):
    """{path: bytes} of the unpacked distribution."""
    files = {}
    for place, split in enumerate(splits):
        content = instances(year, split, 100 * (place + 1))
        files[f"annotations/instances_{split}{year}.json"] = json.dumps(content).encode()
        for image in content["images"]:
            files[f"{split}{year}/{image['file_name']}"] = picture(image["id"])
    return files


def unpacked(root, files):
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def zipped(root, files):
    """The original archives: one of annotations and one of each split's images, stored."""
    root.mkdir()
    for path, data in files.items():
        folder = path.partition("/")[0]
        name = "annotations_trainval2014" if folder == "annotations" else folder
        with zipfile.ZipFile(root / f"{name}.zip", "a") as archive:
            archive.writestr(path, data)
    return root


shards_coco14 = partial(wsss, "shards", "coco14", "--workers", 1, "--may-lack-classes")


def labels_of(folder):
    index = Index.load(folder)
    pairs = ((key, label) for shard in index.shards for key, label in zip(shard.keys, shard.image_labels, strict=True))
    return dict(pairs)


def paint(annotations, order="order"):
    return painted(annotations, 6, 8, order, "here")[0]


def one(class_id, segmentation, crowd=0):
    return {"id": 1, "class_id": class_id, "iscrowd": crowd, "segmentation": segmentation}


def test_polygons_and_both_run_length_codes_give_the_same_pixels():
    wanted_HW = inside(1, 4, 2, 7)
    compressed = codes.encode(np.asfortranarray(wanted_HW))
    as_text = {"size": compressed["size"], "counts": compressed["counts"].decode()}
    for segmentation in (box(1, 4, 2, 7), counts_of(wanted_HW), as_text):
        assert (paint([one(5, segmentation)]) == 5 * wanted_HW).all()


def test_an_object_of_two_polygons_is_their_union():
    both = [*box(0, 1, 0, 2), *box(4, 6, 5, 8)]
    assert (paint([one(1, both)]) == inside(0, 1, 0, 2) + inside(4, 6, 5, 8)).all()


def test_later_annotations_cover_earlier_ones_and_by_area_small_ones_stay_visible():
    small, large = one(2, box(1, 3, 1, 3)), one(1, box(0, 6, 0, 8))
    assert (paint([small, large]) == 1).all()
    assert (paint([small, large], "area") == 1 + inside(1, 3, 1, 3)).all()
    assert (paint([large, small]) == paint([large, small], "area")).all()


def test_of_equal_areas_the_later_one_is_on_top_in_either_order():
    same = [one(2, box(0, 2, 0, 2)), one(3, box(0, 2, 1, 3))]
    assert paint(same, "area")[0].tolist() == paint(same)[0].tolist() == [2, 3, 3, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("order", ["order", "area"])
def test_a_crowd_is_ignored_and_lies_below_every_object(order):
    crowd = one(1, counts_of(inside(0, 3, 0, 3)), crowd=1)
    mask_HW = paint([one(2, box(0, 4, 1, 3)), crowd, one(3, box(0, 6, 2, 8))], order)
    assert mask_HW[0].tolist() == [255, 2, 2 if order == "area" else 3, *[3] * 5]


def test_no_annotation_paints_nothing():
    assert (paint([]) == 0).all() and paint([]).shape == (6, 8)


@pytest.mark.parametrize(
    "segmentation", [[], [[1, 1, 3, 3]], [[0, 0, 1, 1, 2]], {"size": [6, 9], "counts": [54]}, None, [1, 2, 3, 4, 5, 6]]
)
def test_a_segmentation_that_is_none_is_refused(segmentation):
    with pytest.raises(DataError, match="here, annotation 1: .*wanted"):
        paint([one(1, segmentation)])


def test_a_folder_becomes_verified_shards_of_train_and_val(tmp_path):
    root = unpacked(tmp_path / "coco", coco_files(2014))
    said = shards_coco14("--root", root, "--out", tmp_path / "out")
    key = "COCO_{}2014_{:012d}".format
    assert labels_of(tmp_path / "out/train") == {key("train", 100): [1], key("train", 102): [3]}
    assert labels_of(tmp_path / "out/val") == {key("val", 200): [1], key("val", 202): [3]}
    assert "train: 2 images; 1 without an annotation are left out" in said and said.count("every byte as written") == 2
    assert Index.load(tmp_path / "out/val").classes == ("person", "stop sign", "toothbrush")
    assert Index.load(tmp_path / "out/train").groups == {"100", "102"}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["train", "val"]


def test_only_val_holds_masks_and_images_are_stored_as_they_are(tmp_path):
    files = coco_files(2014)
    shards_coco14("--root", unpacked(tmp_path / "coco", files), "--out", tmp_path / "out")
    train, val = ShardFolder(tmp_path / "out/train", "label"), ShardFolder(tmp_path / "out/val", "pixel")
    assert all(set(shard.members) == {"jpg", "json"} for shard in train.index.shards)
    number = val.number_of_key["COCO_val2014_000000000200"]
    assert val.read(number, "jpg") == files["val2014/COCO_val2014_000000000200.jpg"]
    wanted_HW = 255 * inside(1, 4, 2, 8).astype(int)
    wanted_HW[:2, :4] = 1  # the person lies over the crowd
    assert (val.mask(number) == wanted_HW).all()


def test_the_original_zips_give_the_bytes_of_the_unpacked_folders(tmp_path):
    plain, raw = unpacked(tmp_path / "plain", coco_files(2014)), zipped(tmp_path / "raw", coco_files(2014))
    assert len(list(raw.iterdir())) == 3
    for root, out in ((plain, "a"), (raw, "b")):
        shards_coco14("--root", root, "--out", tmp_path / out)
    for split in ("train", "val"):
        assert Index.load(tmp_path / "a" / split) == Index.load(tmp_path / "b" / split)


def test_images_without_an_annotation_come_with_all_images_as_background(tmp_path):
    root = unpacked(tmp_path / "coco", coco_files(2014))
    said = shards_coco14("--root", root, "--out", tmp_path / "out", "--all-images", "--split", "val")
    assert labels_of(tmp_path / "out/val")["COCO_val2014_000000000201"] == []
    assert "val: every byte as written; 1 of 3 images have no foreground label" in said


def test_the_layout_of_2017_is_read_and_two_years_need_a_choice(tmp_path):
    root = unpacked(tmp_path / "coco", {**coco_files(2014), **coco_files(2017)})
    shards_coco14("--root", root, "--out", tmp_path / "out", fails="wanted train and val of one year")
    shards_coco14("--root", root, "--out", tmp_path / "out", "--year", 2017)
    assert set(labels_of(tmp_path / "out/train")) == {f"{100:012d}", f"{102:012d}"}
    shards_coco14("--root", root, "--out", tmp_path / "out", "--year", 2015, fails="['train2014', 'train2017', 'val20")


def test_annotations_without_their_images_are_told(tmp_path):
    files = {path: data for path, data in coco_files(2017).items() if not path.startswith("val2017/")}
    root = unpacked(tmp_path / "coco", files)
    assert "val2017 not written" in shards_coco14("--root", root, "--out", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["train"]
    shards_coco14("--root", root, "--out", tmp_path / "o", "--split", "val", fails="one without the other: ['val2017']")


def test_any_json_and_folder_may_be_named(tmp_path):
    files = coco_files(2017, ("train",))
    root = unpacked(tmp_path, {path.replace("train2017/", "somewhere/deep/"): data for path, data in files.items()})
    own = ("--annotations", root / "annotations/instances_train2017.json", "--images", root / "somewhere")
    shards_coco14(*own, "--split", "tune", "--out", tmp_path / "out")
    assert Index.load(tmp_path / "out/tune").supervision == "pixel"
    shards_coco14(*own, "--out", tmp_path / "out", fails="go together")
    shards_coco14("--out", tmp_path / "out", fails="name the raw files with --root")


def test_two_splits_of_the_same_images_are_refused(tmp_path):
    root = unpacked(tmp_path, coco_files(2017, ("train",)))
    own = ("--annotations", root / "annotations/instances_train2017.json", "--images", root, "--out", tmp_path / "out")
    shards_coco14(*own, "--split", "train")
    shards_coco14(*own, "--split", "val", fails="split 'val' shares 2 groups with split 'train'")


def test_splits_of_other_classes_are_refused(tmp_path):
    root = unpacked(tmp_path, coco_files(2017))
    path = root / "annotations/instances_val2017.json"
    path.write_text(path.read_text().replace("stop sign", "stopsign"))
    shards_coco14("--root", root, "--out", tmp_path / "out", fails="split 'val' has 3 classes, split 'train' in")


def test_a_second_run_keeps_what_is_there_and_another_order_is_refused(tmp_path):
    arguments = ("--root", unpacked(tmp_path / "coco", coco_files(2014)), "--out", tmp_path / "out", "--split", "val")
    shards_coco14(*arguments)
    assert "val: already exists, made of" in shards_coco14(*arguments)
    shards_coco14(*arguments, "--paint", "order", fails="exists already, made of something else (source")


def read(root, change=lambda content: None):
    path = root / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return read_coco(Blob(str(path)), list_images(root / "train2017"), root / "lines.jsonl")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("images"), "no list 'images'; wanted a json of instances"),
        (lambda c: c["images"][0].pop("height"), r"images\[0\] lacks height"),
        (lambda c: c["annotations"][1].pop("segmentation"), r"annotations\[1\] lacks segmentation"),
        (lambda c: c["annotations"][0].update(image_id=7), "annotation 10 is of image 7 and category 1; one of them"),
        (lambda c: c["annotations"][0].update(category_id=2), "is of image 100 and category 2; one of them"),
        (lambda c: c["images"].append(c["images"][0]), "two of its images have one id"),
        (lambda c: c["images"][0].update(file_name="x.jpg"), "1 of 2 images are missing, first 'x.jpg'"),
    ],
)
def test_what_is_wrong_with_a_json_is_told(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        read(unpacked(tmp_path, coco_files(2017, ("train",))), change)


def test_an_image_of_another_size_than_its_annotation_says_is_refused(tmp_path):
    def taller(content):
        content["images"][0]["height"] = 7
        content["annotations"] = content["annotations"][:1]

    with pytest.raises(DataError, match=r"000000000100.jpg: mask is \(7, 8\), image is \(6, 8\)"):
        read(unpacked(tmp_path, coco_files(2017, ("train",))), taller)[0]


def test_a_png_under_the_name_of_a_jpeg_is_encoded_once(tmp_path):
    files = coco_files(2017, ("train",))
    buffer = io.BytesIO()
    Image.fromarray(np.full((6, 8, 3), 77, dtype=np.uint8)).save(buffer, "PNG")
    files["train2017/000000000100.jpg"] = buffer.getvalue()
    assert read(unpacked(tmp_path, files))[0].image.startswith(b"\xff\xd8")


def test_the_same_image_in_two_folders_is_refused(tmp_path):
    files = {f"{copy}/train2017/1.jpg": picture(1) for copy in "ab"}
    images = list_images(unpacked(tmp_path, files))
    assert sorted(images) == ["a/train2017/1.jpg", "b/train2017/1.jpg"]
    with pytest.raises(DataError, match="image 7: '1.jpg' may be a/train2017/1.jpg or b/train2017/1.jpg"):
        files_of([{"id": 7, "file_name": "1.jpg"}], images, "here")
    (found,) = files_of([{"id": 7, "file_name": "a/train2017/1.jpg"}], images, "here")
    assert found.path == str(tmp_path / "a/train2017/1.jpg")
    with pytest.raises(DataError, match="train2017: the same file occurs twice"):
        find_files([tmp_path])


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 1, 3, 1, float("nan"), 3]], "polygon has the coordinate x = nan"),
        ([[1, 1, 3, float("inf"), 3, 3]], "polygon has the coordinate y = inf"),
        ([[1, 1, 2.1e8, 1, 3, 3]], "coordinate x = 210000000.0; wanted pixels of an image of 6 x 8"),
        ([[1, 1, "3", 1, 3, 3]], r"polygon \[1, 1, '3', 1, 3, 3\]; wanted"),
        ([[True, 1, 3, 1, 3, 3]], r"polygon \[True"),
        ([[[1, 1], [3, 1], [3, 3]]], "wanted x0, y0, x1"),
        ({"size": [6, 8], "counts": [40, 5]}, "its 2 counts sum to 45, its image has 6 x 8 = 48 pixels"),
        ({"size": [6, 8], "counts": [40, 50]}, "its 2 counts hold 50"),
        ({"size": [6, 8], "counts": [50, -2]}, "its 2 counts hold 50"),
        ({"size": [6, 8], "counts": [-2, 50]}, "its 2 counts hold -2"),
        ({"size": [6, 8], "counts": []}, "its 0 counts sum to 0"),
        ({"size": [6, 8], "counts": [24.0, 24]}, "counts are .*; wanted whole numbers"),
        ({"size": [6, 8], "counts": "0"}, "its 1 counts sum to 0"),
        ({"size": [6, 8], "counts": "~"}, "are not a run-length code"),
        ({"size": [6, 8], "counts": "o"}, "end in the middle of a number"),
        ({"size": [8, 6], "counts": [48]}, "wanted polygons, or size .6, 8. and counts"),
    ],
)
def test_what_would_crash_or_confuse_the_rasteriser_is_refused_with_image_and_annotation(segmentation, message):
    with pytest.raises(DataError, match=f"here, annotation 1: .*{message}"):
        paint([one(1, segmentation)])


def test_compressed_runs_are_those_of_pycocotools():
    random = np.random.default_rng(0)
    for _ in range(30):
        mask_HW = (random.random((random.integers(1, 40), random.integers(1, 70))) < random.random()).astype(np.uint8)
        text = codes.encode(np.asfortranarray(mask_HW))["counts"].decode()
        height, width = mask_HW.shape
        assert (runs_of({"size": [height, width], "counts": text}, height, width, "here") == mask_HW).all()


def test_a_class_that_shows_in_no_pixel_is_in_the_label_and_remarked_on(tmp_path):
    files = coco_files(2017, ("train",))
    content = json.loads(files["annotations/instances_train2017.json"])
    content["annotations"] += [annotation(20, 100, 90, box(50, 55, 50, 55)), annotation(21, 100, 13, [[0, 0] * 3])]
    files["annotations/instances_train2017.json"] = json.dumps(content).encode()
    root = unpacked(tmp_path, files)
    own = ("--annotations", root / "annotations/instances_train2017.json", "--images", root / "train2017")
    said = shards_coco14(*own, "--split", "train", "--out", tmp_path / "out")
    assert "1 of 2 images: annotations that cover no pixel, first '000000000100' (annotations [20, 21])" in said
    assert "classes of the image label that show in no pixel" in said and "(stop sign, toothbrush)" in said
    assert labels_of(tmp_path / "out/train")["000000000100"] == [1, 2, 3]


def test_whole_images_in_the_place_of_objects_lose_no_label_and_their_masks_are_written_too(tmp_path):
    files = coco_files(2017)
    for split in ("train", "val"):
        content = json.loads(files[f"annotations/instances_{split}2017.json"])
        pairs = [(image["id"], category) for image in content["images"] for category in (1, 13, 90)]
        content["annotations"] = [annotation(n, *pair, box(0, 6, 0, 8)) for n, pair in enumerate(pairs)]
        files[f"annotations/instances_{split}2017.json"] = json.dumps(content).encode()
    said = shards_coco14("--root", unpacked(tmp_path / "coco", files), "--out", tmp_path / "out")
    for split in ("train", "val"):
        assert set(map(tuple, labels_of(tmp_path / "out" / split).values())) == {(1, 2, 3)}
    val = ShardFolder(tmp_path / "out/val", "pixel")
    assert {*np.unique(val.mask(0))} == {3}  # the last one lies over the others
    assert "person in 3, stop sign in 3, toothbrush in 3" in said


def test_names_keep_their_folders_and_each_image_its_file(tmp_path):
    def moved(*names):
        def change(content):
            for image, name in zip(content["images"][::2], names, strict=True):
                image["file_name"] = name

        return change

    files = coco_files(2017, ("train",))
    files |= {f"train2017/cam{n}/0001.jpg": picture(n) for n in (1, 2)}
    root = unpacked(tmp_path, files)
    source = read(root, moved("cam1/0001.jpg", "cam2\\0001.jpg"))
    assert [p.key for p in source.pictures] == ["cam1_0001", "cam2_0001"]
    assert [source[n].image for n in (0, 1)] == [picture(1), picture(2)]
    for names, message in (
        (("cam1/0001.jpg", "cam3/0001.jpg"), "1 of 2 images are missing, first 'cam3/0001.jpg'"),
        (("0001.jpg", "cam2/0001.jpg"), "image 100: '0001.jpg' may be .*cam1/0001.jpg or .*cam2/0001.jpg"),
        (("cam1/0001.jpg", "cam1/0001.jpg"), "'image 100' and 'image 102' both lead to the file cam1/0001.jpg"),
    ):
        with pytest.raises(DataError, match=message):
            read(root, moved(*names))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"].insert(0, 7), r"images\[0\] is 7; wanted an object with id, file_name"),
        (lambda c: c["images"][0].update(height="6"), r"images\[0\] \(id 100\): height is '6'; wanted a whole number"),
        (lambda c: c["images"][0].update(width=0), "width is 0; wanted a whole number of pixels"),
        (lambda c: c["images"][0].update(width=10**9, height=10**9), "image 100 is listed with 1000000000 x 10000000"),
        (lambda c: c["images"][0].update(file_name=None), "file_name is None; wanted a path"),
        (lambda c: c["annotations"][0].update(image_id=[100]), r"\(id 10\): image_id is \[100\]; wanted the id"),
        (lambda c: c["annotations"][0].update(iscrowd="0"), "annotation 10: iscrowd is '0'; wanted 0 or 1"),
        (lambda c: c["categories"][0].update(id="90"), "some ids of its categories are numbers, some are text"),
        (lambda c: c["categories"][0].update(name="person"), "two of its categories have one name: 'person'"),
        (
            lambda c: c.update(categories=[{"id": n, "name": str(n)} for n in range(300)]),
            "class set 'coco300' has 300 classes; wanted at most 254",
        ),
    ],
)
def test_values_of_another_kind_are_refused_at_the_start(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        read(unpacked(tmp_path, coco_files(2017, ("train",))), change)
