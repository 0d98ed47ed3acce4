import errno
import gc
import hashlib
import io
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import webdataset
from PIL import Image

from shards.index import Index
from shards.sample_files import members_of
from shards.schema import DataError, DiskError, Sample
from shards.sources.synthetic import Synthetic
from shards.write import write_split, write_tar

SOURCE = Synthetic(split="train", num_images=20, size=32)


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_every_sample_is_written_once_with_its_bytes(tmp_path):
    index = write_split(SOURCE, tmp_path, "train", "label", num_shards=6)
    written = dict(plain_webdataset(tmp_path / "train"))
    assert written == {sample.key: sample.image for sample in SOURCE}
    assert len(index.shards) == 6 and index.num_samples == 20
    assert index == Index.load(tmp_path / "train")


def plain_webdataset(folder):
    """Any WebDataset reader can read the tars."""
    paths = sorted(str(path) for path in folder.glob("*.tar"))
    for sample in webdataset.WebDataset(paths, shardshuffle=False):
        yield sample["__key__"], sample["jpg"]


def test_bytes_do_not_depend_on_time_or_on_who_writes(tmp_path):
    write_split(SOURCE, tmp_path / "a", "train", "label", num_shards=5)
    with ThreadPoolExecutor(3) as pool:
        write_split(SOURCE, tmp_path / "b", "train", "label", num_shards=5, run=pool.map)
    assert digests(tmp_path / "a/train") == digests(tmp_path / "b/train")
    with tarfile.open(tmp_path / "a/train/train-00000.tar") as tar:
        assert {(member.mtime, member.uname, member.gname) for member in tar} == {(0, "wsss", "wsss")}


def test_shards_are_never_more_than_samples(tmp_path):
    assert len(write_split(replace(SOURCE, num_images=3), tmp_path, "train", "label").shards) == 3


def test_a_label_only_split_refuses_a_mask_and_leaves_nothing_behind(tmp_path):
    with pytest.raises(DataError, match="a label-only shard holds none"):
        write_split(replace(SOURCE, with_masks=True), tmp_path, "train", "label")
    assert list(tmp_path.iterdir()) == []


class Broken(Synthetic):
    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        return replace(sample, image=sample.image[:100]) if index == 17 else sample


def test_an_image_that_does_not_decode_leaves_nothing_in_sight(tmp_path):
    with pytest.raises(DataError, match="synthetic: sample 'train-00017': image does not decode"):
        write_split(Broken(split="train", num_images=20, size=32), tmp_path, "train", "label")
    assert list(tmp_path.glob("[!.]*")) == []
    write_split(SOURCE, tmp_path, "train", "label")  # what is hidden is removed with the next write
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


def test_an_empty_split_is_told(tmp_path):
    with pytest.raises(DataError, match="split 'train': the source has no sample"):
        write_split(replace(SOURCE, num_images=0), tmp_path, "train", "label")


def test_a_class_without_a_positive_image_is_told(tmp_path):
    with pytest.raises(DataError, match="no image is labelled smoke among 20"):
        write_split(replace(SOURCE, smoke_rate=0.0), tmp_path, "train", "label")
    assert not (tmp_path / "train").exists()
    write_split(replace(SOURCE, smoke_rate=0.0, with_masks=True), tmp_path, "clear", "pixel")  # to evaluate on: fine


def test_splits_that_share_a_group_are_refused_and_the_group_is_named(tmp_path):
    write_split(SOURCE, tmp_path, "train", "label")
    with pytest.raises(DataError, match="split 'val' shares 5 groups with split 'train' in .*'train-scene00000'"):
        write_split(replace(SOURCE, with_masks=True), tmp_path, "val", "pixel")
    write_split(replace(SOURCE, split="val", with_masks=True), tmp_path, "val", "pixel")


def test_an_existing_split_is_not_overwritten(tmp_path):
    write_split(SOURCE, tmp_path, "train", "label")
    before = digests(tmp_path / "train")
    with pytest.raises(DataError, match="exists already"):
        write_split(replace(SOURCE, seed=1), tmp_path, "train", "label")
    assert digests(tmp_path / "train") == before


def test_duplicate_keys_are_refused(tmp_path):
    class Twice(Synthetic):
        def __getitem__(self, index: int) -> Sample:
            return super().__getitem__(index % 19)

    for num_shards, message in ((1, "'train-00000.jpg' occurs twice"), (20, "keys appear twice: .'train-00000'")):
        with pytest.raises(DataError, match=message):
            write_split(Twice(split="train", num_images=20, size=32), tmp_path, "train", "label", num_shards=num_shards)
        assert list(tmp_path.glob("[!.]*")) == []


def test_a_killed_writer_leaves_no_final_name(tmp_path):
    def samples():
        yield "a", {"jpg": b"1"}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_tar(tmp_path / "x.tar", samples())
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_fails_after_its_first_sample_prints_nothing_of_the_tar(tmp_path, monkeypatch):
    def samples():
        yield "a", {"jpg": b"1"}
        raise DataError("the second one")

    unraised = []
    monkeypatch.setattr("sys.unraisablehook", unraised.append)
    with pytest.raises(DataError, match="the second one"):
        write_tar(tmp_path / "a.tar", samples())
    gc.collect()
    assert not unraised and not list(tmp_path.iterdir())


def test_a_jpeg_is_stored_byte_for_byte(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(buffer, "JPEG", quality=30)
    image = buffer.getvalue()
    sample = Sample(key="k", image=image, image_label=(), group="g", source="s")
    assert members_of(sample, SOURCE.class_set, "label")["jpg"] == image


def test_a_tar_is_whole_before_it_gets_its_name(tmp_path):
    """A note of its digest is made then."""
    seen = []

    def keep(temporary, path):
        seen.append(temporary.read_bytes())
        temporary.rename(path)

    write_tar(tmp_path / "x.tar", [("a", {"jpg": b"1"})], keep)
    assert seen == [(tmp_path / "x.tar").read_bytes()] and len(seen[0]) > 1024


def test_a_disk_that_takes_no_shard_is_told_and_a_source_that_fails_is_not_the_disk(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"gone/x.tar: cannot be written: .*a folder in this path does not exist"):
        write_tar(tmp_path / "gone/x.tar", [])

    def fails():
        yield "a", {"json": b"{}"}
        raise OSError("the source")

    with pytest.raises(OSError, match="the source"):
        write_tar(tmp_path / "x.tar", fails())

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(webdataset.TarWriter, "write", refuse)
    with pytest.raises(DiskError, match=r"x.tar: cannot be written: .*No space left on device"):
        write_tar(tmp_path / "x.tar", [("a", {"jpg": b"1"})])
    assert not list(tmp_path.iterdir())
