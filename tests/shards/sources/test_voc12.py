import gzip
import io
import json
import tarfile
import zipfile
from functools import partial

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from support.command import wsss

from shards.batches import order
from shards.batches.loaders import train_loader
from shards.folder import ShardFolder
from shards.image_bytes import encode_image, encode_mask
from shards.index import Index, check_every_class_has_an_image
from shards.schema import DataError
from shards.sources.archives import Blob, list_archive, list_folder, repacked
from shards.sources.voc12 import VOC12, read_mask, read_voc12
from shards.sources.voc_files import find_files
from shards.write import write_split

# id -> class ids that its mask shows; VOC trains on the first, evaluates on the third and tests on the last
SHOWN = {
    "2007_000001": (15, 12),
    "2008_000002": (1,),
    "2007_000003": (20,),
    "2009_000004": (),
    "2010_000005": (3, 255),
}
TRAIN, VAL, TEST = "2007_000001", "2007_000003", "2011_000006"
LISTS = {"train": [TRAIN], "val": [VAL], "test": [TEST]}
AUGMENTED = ["2007_000001", "2008_000002", "2009_000004", "2010_000005"]


def picture(number):
    return encode_image(np.full((6, 8 + number, 3), 20 * number, dtype=np.uint8))


def mask_of(ids, number):
    mask_HW = np.zeros((6, 8 + number), dtype=np.uint8)
    for row, class_id in enumerate(ids):
        mask_HW[row, :3] = class_id
    return mask_HW


def voc_tree(lists=LISTS):
    """{path below VOCdevkit/VOC2012: bytes} of VOC itself: it has masks of its own train and val images only."""
    files = {}
    for number, one in enumerate([*SHOWN, TEST]):
        files[f"JPEGImages/{one}.jpg"] = picture(number)
        if one in (TRAIN, VAL):
            files[f"SegmentationClass/{one}.png"] = encode_mask(mask_of(SHOWN[one], number))
    for name, ids in lists.items():
        files[f"ImageSets/Segmentation/{name}.txt"] = "".join(f"{one}\n" for one in ids).encode()
    return {f"VOCdevkit/VOC2012/{path}": data for path, data in files.items()}


def augmented(folder="SegmentationClassAug"):
    return {f"{folder}/{one}.png": encode_mask(mask_of(SHOWN[one], n)) for n, one in enumerate(SHOWN)}


def sbd():
    """SBD annotates VOC's images of either split; it has no 255."""
    files = {"train.txt": b"2008_000002\n2007_000003\n2009_000004\n", "val.txt": b"2010_000005\n"}
    for number, (one, ids) in enumerate(SHOWN.items()):
        buffer = io.BytesIO()
        mask_HW = mask_of([class_id for class_id in ids if class_id != 255], number)
        savemat(buffer, {"GTcls": {"Boundaries": np.zeros(20), "Segmentation": mask_HW, "CategoriesPresent": 1.0}})
        if one != TRAIN:
            files[f"cls/{one}.mat"] = buffer.getvalue()
    return {f"benchmark_RELEASE/dataset/{path}": data for path, data in files.items()}


def unpacked(root, files):
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def as_tar(path, files, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def as_zip(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


shards_voc12 = partial(wsss, "shards", "voc12", "--workers", 1)


def labels_of(folder):
    index = Index.load(folder)
    pairs = ((key, tuple(label)) for s in index.shards for key, label in zip(s.keys, s.image_labels, strict=True))
    return dict(pairs)


WANTED_TRAIN = {"2007_000001": (12, 15), "2008_000002": (1,), "2009_000004": (), "2010_000005": (3,)}


def test_the_classes_are_those_of_voc_in_their_order():
    assert VOC12.num_fg_classes == 20 and len(set(VOC12.classes)) == 20
    assert [VOC12.classes[n - 1] for n in (1, 8, 15, 20)] == ["aeroplane", "cat", "person", "tvmonitor"]


def test_a_tree_becomes_verified_shards_of_all_splits_in_one_command(tmp_path):
    root = unpacked(tmp_path / "raw", {**voc_tree(), **augmented("VOCdevkit/VOC2012/SegmentationClassAug")})
    said = shards_voc12("--root", root, "--out", tmp_path / "out", "--may-lack-classes")
    assert labels_of(tmp_path / "out/train") == WANTED_TRAIN
    assert labels_of(tmp_path / "out/val") == {VAL: (20,)}
    assert labels_of(tmp_path / "out/test") == {TEST: ()}
    assert said.count("every byte as written") == 3
    assert "4 images of 10582 in the whole data set, listed by SegmentationClassAug - VOC val" in said
    assert "out/train: every byte as written; 1 of 4 images have no foreground label" in said


def test_only_val_holds_masks_and_images_are_stored_as_they_are(tmp_path):
    root = unpacked(tmp_path / "raw", {**voc_tree(), **augmented()})
    shards_voc12("--root", root, "--out", tmp_path / "out", "--may-lack-classes")
    for split in ("train", "val", "test"):
        folder = ShardFolder(tmp_path / "out" / split)
        members = {"jpg", "json", "png"} if split == "val" else {"jpg", "json"}
        assert all(set(shard.members) == members for shard in folder.index.shards)
        for number, key in enumerate(folder.keys):
            assert folder.read(number, "jpg") == (root / f"VOCdevkit/VOC2012/JPEGImages/{key}.jpg").read_bytes()
    val = ShardFolder(tmp_path / "out/val", "pixel")
    assert (val.mask(0) == mask_of((20,), 2)).all() and val.about(0)["size"] == [6, 10]


def test_the_original_archives_give_the_bytes_of_the_unpacked_tree(tmp_path):
    plain = unpacked(tmp_path / "plain", {**voc_tree(), **sbd()})
    raw = tmp_path / "raw"
    of_test = {path: data for path, data in voc_tree().items() if TEST in path or "test.txt" in path}
    of_trainval = {path: data for path, data in voc_tree().items() if path not in of_test}
    as_tar(raw / "VOCtrainval_11-May-2012.tar", of_trainval)
    as_tar(raw / "VOC2012test.tar", of_test)
    as_tar(raw / "benchmark.tgz", sbd(), "w:gz")
    for root, out in ((plain, "a"), (raw, "b")):
        shards_voc12("--root", root, "--out", tmp_path / out, "--may-lack-classes")
    for split in ("train", "val", "test"):
        a, b = (Index.load(tmp_path / out / split) for out in "ab")
        assert a.shards == b.shards
    assert labels_of(tmp_path / "b/train") == WANTED_TRAIN
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["test", "train", "val"]
    made = json.loads((tmp_path / "b/train/made_of.json").read_text())["source"]
    assert made["masks_from"] == {"mask": 1, "SBD mask": 3}
    assert (
        shards_voc12("--root", raw, "--out", tmp_path / "b", "--may-lack-classes").count("already exists, made of") == 3
    )


def test_augmented_masks_may_lie_in_a_zip_beside_a_tar(tmp_path):
    tar = as_tar(tmp_path / "VOCtrainval_11-May-2012.tar", voc_tree())
    zipped = as_zip(
        tmp_path / "SegmentationClassAug.zip", {**augmented(), "__MACOSX/SegmentationClassAug/._a.png": b""}
    )
    source = read_voc12(find_files([tar, zipped], tmp_path), "train")
    assert {sample.key: sample.image_label for sample in source} == WANTED_TRAIN


def test_train_is_derived_from_voc_and_sbd_without_the_images_of_val(tmp_path):
    files = find_files([unpacked(tmp_path, {**voc_tree(), **sbd()})], tmp_path)
    assert [p.key for p in read_voc12(files, "train").pictures] == AUGMENTED  # SBD's train lists VOC's val image


def test_a_list_that_is_there_counts_before_what_could_be_derived(tmp_path):
    lists = {**LISTS, "train_aug": ["2008_000002"]}
    files = find_files([unpacked(tmp_path, {**voc_tree(lists), **sbd()})], tmp_path)
    assert [p.key for p in read_voc12(files, "train").pictures] == ["2008_000002"]


def test_a_list_may_be_named_or_be_a_path_of_lines_of_paths(tmp_path):
    files = find_files([unpacked(tmp_path, {**voc_tree({**LISTS, "few": [TRAIN]}), **augmented()})], tmp_path)
    assert [p.key for p in read_voc12(files, "train", list_file="few.txt").pictures] == [TRAIN]
    (tmp_path / "mine.txt").write_text("/JPEGImages/2010_000005.jpg /SegmentationClassAug/2010_000005.png\n\n")
    own = read_voc12(files, "tune", list_file=str(tmp_path / "mine.txt"), with_masks=True)
    assert own[0].key == "2010_000005" and own[0].image_label == (3,) and (own[0].mask[1] == [255] * 3 + [0] * 9).all()
    with pytest.raises(DataError, match="other.txt: no such file, and no such list .*'few'"):
        read_voc12(files, "train", list_file="other.txt")


def test_val_takes_the_masks_of_voc_and_never_those_of_sbd(tmp_path):
    tree = {**voc_tree(), **sbd()}
    other = {f"SegmentationClassAug/{VAL}.png": encode_mask(mask_of((7,), 2))}
    files = find_files([unpacked(tmp_path / "a", {**tree, **other})], tmp_path)
    assert read_voc12(files, "val")[0].image_label == (20,)
    del tree[f"VOCdevkit/VOC2012/SegmentationClass/{VAL}.png"]
    with pytest.raises(DataError, match=f"1 of 1 images of split 'val' .val.txt. have no mask, first '{VAL}'"):
        read_voc12(find_files([unpacked(tmp_path / "b", tree)], tmp_path), "val")


def test_other_years_beside_2012_are_not_mixed_in(tmp_path):
    old = {path.replace("VOC2012", "VOC2007"): data for path, data in voc_tree({"val": ["000001"]}).items()}
    files = find_files([unpacked(tmp_path, {**voc_tree(), **old})], tmp_path)
    assert [p.key for p in read_voc12(files, "val").pictures] == [VAL]


@pytest.mark.parametrize(("pack", "ending"), [(unpacked, ""), (as_tar, ".tar"), (as_zip, ".zip")])
def test_a_folder_in_vocs_layout_with_other_classes_is_refused(tmp_path, pack, ending):
    def annotated(name):
        objects = f"<object><name>{name}</name><part><name>head</name></part></object>"
        return {f"VOCdevkit/VOC2012/Annotations/{VAL}.xml": f"<annotation>{objects}</annotation>".encode()}

    own = pack(tmp_path / f"VOC2012{ending}", {**voc_tree(), **annotated("tvmonitor")})
    assert len(read_voc12(find_files([own], tmp_path), "val").pictures) == 1
    other = pack(tmp_path / f"VOC2012_smoke{ending}", {**voc_tree(), **annotated("smoke")})
    with pytest.raises(DataError, match=f"{VAL}.xml: names the class 'smoke', .*wsss shards images. reads"):
        read_voc12(find_files([other], tmp_path), "val")


def test_a_colour_picture_of_a_mask_is_refused(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((6, 8, 3), dtype=np.uint8)).save(buffer, "PNG")
    files = {**voc_tree(), f"SegmentationClassAug/{TRAIN}.png": buffer.getvalue()}
    source = read_voc12(find_files([unpacked(tmp_path, files)], tmp_path), "train")
    with pytest.raises(DataError, match="mask has mode RGB"):
        source[0]


def test_an_image_of_another_size_than_its_mask_is_refused_though_the_mask_is_dropped(tmp_path):
    files = {**voc_tree(), f"SegmentationClassAug/{TRAIN}.png": encode_mask(mask_of((1,), 5))}
    source = read_voc12(find_files([unpacked(tmp_path, files)], tmp_path), "train")
    with pytest.raises(DataError, match=r"JPEGImages/2007_000001.jpg: mask is \(6, 13\), image is \(6, 8\)"):
        source[0]


def test_an_unknown_class_in_a_mask_is_refused(tmp_path):
    files = {**voc_tree(), f"SegmentationClassAug/{TRAIN}.png": encode_mask(mask_of((21,), 0))}
    source = read_voc12(find_files([unpacked(tmp_path / "raw", files)], tmp_path), "train")
    with pytest.raises(DataError, match=r"label holds class ids \[21\]"):
        write_split(source, tmp_path / "out", "train", "label", may_lack_classes=True)


def test_a_missing_image_is_named(tmp_path):
    tree = voc_tree()
    del tree[f"VOCdevkit/VOC2012/JPEGImages/{TEST}.jpg"]
    files = find_files([unpacked(tmp_path, tree)], tmp_path)
    with pytest.raises(DataError, match=f"1 of 1 images of split 'test' .* have no image, first '{TEST}'"):
        read_voc12(files, "test")


def test_what_cannot_be_had_is_told(tmp_path):
    root = unpacked(tmp_path / "raw", voc_tree({"val": [VAL]}))
    said = shards_voc12("--root", root, "--out", tmp_path / "out")
    assert "train not written" in said and "benchmark.tgz" in said and "test not written" in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["val"]
    shards_voc12(
        "--root", root, "--out", tmp_path / "o", "--split", "train", fails="no list train_aug.txt, and nothing"
    )
    shards_voc12("--root", root, "--out", tmp_path / "o", "--list", "val.txt", fails="say which with --split")
    shards_voc12("--root", tmp_path / "gone", "--out", tmp_path / "o", fails="no such folder or archive")


def test_the_same_file_in_two_folders_is_refused(tmp_path):
    root = unpacked(tmp_path, {**augmented("a/SegmentationClassAug"), **augmented("b/SegmentationClassAug")})
    with pytest.raises(DataError, match="augmented mask '2007_000001' occurs twice: .*a/Seg.* and .*b/Seg"):
        find_files([root], tmp_path)


def test_training_refuses_a_test_split_and_says_why(tmp_path):
    source = read_voc12(find_files([unpacked(tmp_path, voc_tree())], tmp_path), "test")
    shards_voc12("--root", tmp_path / "VOCdevkit", "--out", tmp_path / "plain", "--split", "test")
    index = write_split(source, tmp_path / "out", "test", "label", may_lack_classes=True)
    with pytest.raises(DataError, match="a test split without truth: none of its 1 images has a label"):
        check_every_class_has_an_image(index, "out/test")
    with pytest.raises(DataError, match="a test split without truth"):
        part = order.Slice(rank=0, ranks=1, global_batch_size=1)
        train_loader(ShardFolder(tmp_path / "out/test"), None, seed=0, part=part, workers=0)


def test_crops_share_the_group_of_their_photograph(tmp_path):
    names = ["2007_000001", "2007_000001_c1", "2007_000001_c12"]
    files = {f"JPEGImages/{name}.jpg": picture(0) for name in names}
    files.update({f"SegmentationClassAug/{name}.png": encode_mask(mask_of((1,), 0)) for name in names})
    files["ImageSets/Segmentation/train_aug.txt"] = "\n".join(names).encode()
    found = find_files([unpacked(tmp_path, files)], tmp_path)
    assert set(read_voc12(found, "train").groups()) == {"2007_000001"}
    assert set(read_voc12(found, "train", group_pattern=r"(\d+)_.*").groups()) == {"2007"}
    with pytest.raises(DataError, match="see --group-pattern"):
        read_voc12(found, "train", group_pattern=r"(\d+)")


def test_train_and_val_may_share_no_photograph(tmp_path):
    root = unpacked(tmp_path / "raw", {**voc_tree({**LISTS, "train_aug": [TRAIN, VAL]}), **augmented()})
    arguments = ("--root", root, "--out", tmp_path / "out", "--may-lack-classes")
    shards_voc12(*arguments, fails=f"shares 1 groups with split 'train' in {tmp_path / 'out'}, first '{VAL}'")


def test_a_second_run_keeps_what_is_there_and_another_source_is_refused(tmp_path):
    root = unpacked(tmp_path / "raw", {**voc_tree(), **augmented()})
    arguments = ("--root", root, "--out", tmp_path / "out", "--split", "val")
    shards_voc12(*arguments)
    before = (tmp_path / "out/val/index.json").stat().st_mtime_ns
    assert "val: already exists, made of" in shards_voc12(*arguments)
    assert (tmp_path / "out/val/index.json").stat().st_mtime_ns == before
    (root / f"VOCdevkit/VOC2012/SegmentationClass/{VAL}.png").write_bytes(encode_mask(mask_of((5,), 2)))
    shards_voc12(*arguments, fails="exists already, made of something else (source")


def test_a_damaged_archive_is_told(tmp_path):
    tar = as_tar(tmp_path / "VOC.tar", voc_tree())
    blobs = list_archive(tar)
    tar.write_bytes(tar.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"VOC.tar:VOCdevkit/.*ends after \d+ of \d+ bytes"):
        [blob.read() for blob in blobs.values()]
    broken = as_zip(tmp_path / "a.zip", {"SegmentationClassAug/x.png": b"x" * 99})
    blob = list_archive(broken)["a/SegmentationClassAug/x.png"]
    data = bytearray(broken.read_bytes())
    data[60] ^= 255
    broken.write_bytes(data)
    with pytest.raises(DataError, match="a.zip:SegmentationClassAug/x.png: cannot be read"):
        blob.read()
    packed = as_tar(tmp_path / "b.tgz", sbd(), "w:gz")
    packed.write_bytes(packed.read_bytes()[:-200])
    with pytest.raises(DataError, match="b.tgz: damaged archive"):
        repacked(packed, lambda name: True, tmp_path)
    assert not list(tmp_path.glob(".b.tgz*"))
    with pytest.raises(DataError, match="is a compressed tar"):
        list_archive(packed)


def test_a_mat_file_that_is_none_is_told(tmp_path):
    (tmp_path / "a.mat").write_bytes(b"no mat")
    with pytest.raises(DataError, match="a.mat: no SBD annotation"):
        read_mask(Blob(str(tmp_path / "a.mat")))


def test_a_link_that_leads_in_a_circle_ends(tmp_path):
    root = unpacked(tmp_path / "raw", voc_tree())
    (root / "VOCdevkit/again").symlink_to(root)
    assert len(list_folder(root)) == len(voc_tree())


def listed(root, lines, names=("img", "img 1", "frame_1", "frame_1.5", "site.1.001", "site.1.002"), **files):
    """The ids that a list of these lines takes from a tree of these images, each with a mask of class 1."""
    tree = {f"JPEGImages/{name}.jpg": picture(0) for name in names}
    tree |= {f"SegmentationClassAug/{name}.png": encode_mask(mask_of((1,), 0)) for name in names}
    tree["ImageSets/Segmentation/mine.txt"] = lines if isinstance(lines, bytes) else lines.encode()
    return [picture.group for picture in read_voc12(find_files([unpacked(root, tree)], root), "mine").pictures]


def test_a_list_holds_ids_with_dots_and_blanks_and_pairs_of_paths(tmp_path):
    wanted = ["img 1", "frame_1.5", "site.1.001", "site.1.002", "frame_1", "img"]
    lines = [*wanted[:4], "JPEGImages/frame_1.jpg SegmentationClassAug/frame_1.png", "/JPEGImages/img.jpg"]
    assert listed(tmp_path, "\ufeff" + "\r\n".join(lines) + "\r\n") == wanted


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("img 2", "have no image, first 'img 2'"),
        ("frame_1.7", "have no image, first 'frame_1.7'"),
        ("img -1", "have no image, first 'img -1'"),
        ("img\nJPEGImages/img.jpg", "'img' is listed twice"),
        ("img.jpg frame_1.png", "pairs the image 'img' with the mask of 'frame_1'; wanted the same id"),
        ("VOC2007/JPEGImages/img.jpg", "have no image, first 'VOC2007/JPEGImages/img.jpg'"),
        (b"\xff\xfei\0m\0g\0", "mine.txt: is UTF-16"),
        ("", "mine.txt: lists no name"),
    ],
)
def test_a_line_that_means_no_image_or_two_is_refused(tmp_path, line, message):
    with pytest.raises(DataError, match=message):
        listed(tmp_path, line)


def test_images_may_be_pngs_and_one_id_has_one_image(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6)).save(buffer, "PNG")
    tree = {"JPEGImages/a.png": buffer.getvalue(), "ImageSets/Segmentation/val.txt": b"a"}
    tree["SegmentationClass/a.png"] = encode_mask(mask_of((1,), 0))
    source = read_voc12(find_files([unpacked(tmp_path / "one", tree)], tmp_path), "val")
    assert source[0].image.startswith(b"\xff\xd8") and source[0].image_label == (1,)
    tree["JPEGImages/a.jpg"] = picture(0)
    with pytest.raises(DataError, match="image 'a' occurs twice: .*a.jpg and .*a.png"):
        find_files([unpacked(tmp_path / "two", tree)], tmp_path)
    with pytest.raises(DataError, match="image 'a' occurs twice"):
        find_files([as_tar(tmp_path / "VOC.tar", tree)], tmp_path)


def linked_tar(path, target, kind):
    """A tar of a folder with one file and a link to `target`."""
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("x/SegmentationClassAug/a.png")
        info.size = 5
        tar.addfile(info, io.BytesIO(b"bytes"))
        link = tarfile.TarInfo("x/SegmentationClassAug/b.png")
        link.type, link.linkname = kind, target
        tar.addfile(link)
    return path


@pytest.mark.parametrize(
    ("target", "kind"), [("x/SegmentationClassAug/a.png", tarfile.LNKTYPE), ("./a.png", tarfile.SYMTYPE)]
)
def test_a_link_in_a_tar_is_the_file_that_it_leads_to(tmp_path, target, kind):
    files = list_archive(linked_tar(tmp_path / "t.tar", target, kind))
    assert files["t/x/SegmentationClassAug/b.png"].read() == b"bytes"
    assert len(find_files([tmp_path / "t.tar"], tmp_path)["augmented mask"]) == 2


@pytest.mark.parametrize(("target", "kind"), [("/etc/passwd", tarfile.SYMTYPE), ("b.png", tarfile.SYMTYPE)])
def test_a_link_that_leads_out_of_a_tar_or_nowhere_is_refused(tmp_path, target, kind):
    with pytest.raises(DataError, match="t.tar: member 'x/SegmentationClassAug/b.png' is a link to"):
        list_archive(linked_tar(tmp_path / "t.tar", target, kind))


def test_a_tar_is_never_smaller_in_silence(tmp_path):
    """Cut at any block, or with any header damaged, it is refused or holds all that it held."""
    tar = as_tar(tmp_path / "VOC.tar", {f"JPEGImages/{n}.jpg": bytes(700) for n in range(3)})
    whole = tar.read_bytes()
    for at in range(0, len(whole), 512):
        for damaged in (whole[:at], whole[:at] + b"\xff" * 512 + whole[at + 512 :]):
            tar.write_bytes(damaged)
            try:
                files = list_archive(tar)
            except DataError as error:
                assert "VOC.tar" in str(error)
            else:
                assert len(files) == 3


def test_links_of_a_compressed_archive_are_not_dropped(tmp_path):
    buffer = linked_tar(tmp_path / "t.tar", "./a.png", tarfile.SYMTYPE).read_bytes()
    (tmp_path / "t.tgz").write_bytes(gzip.compress(buffer))
    assert len(list_archive(repacked(tmp_path / "t.tgz", lambda name: True, tmp_path))) == 2
