import numpy as np
import pytest

from shards.folder import ShardFolder
from shards.index import Index
from shards.schema import DataError
from shards.sources.joined import Joined
from shards.sources.synthetic import Synthetic
from shards.write import write_split


def split(out, name, images, masks=False, seed=0):
    source = Synthetic(split=name, num_images=images, size=32, seed=seed, with_masks=masks)
    write_split(source, out, name, "pixel" if masks else "label", num_shards=4)
    return out / name


def test_folders_become_one_split_with_all_samples_and_their_own_bytes(tmp_path):
    folders = (split(tmp_path / "a", "train", 8), split(tmp_path / "b", "more", 5))
    index = write_split(Joined(folders), tmp_path / "c", "train", "label", num_shards=3)
    parts, joined = [ShardFolder(folder) for folder in folders], ShardFolder(tmp_path / "c/train")
    assert index.num_samples == 13
    for part in parts:
        for number, key in enumerate(part.keys):
            there = joined.number_of_key[key]
            assert joined.read(there, "jpg") == part.read(number, "jpg")
            assert joined.groups[there] == part.groups[number]
            assert np.array_equal(joined.image_label_NK[there], part.image_label_NK[number])
            assert joined.about(there)["source"] == "synthetic"


def test_keys_that_two_folders_share_are_told_apart(tmp_path):
    folders = (split(tmp_path / "a", "train", 4), split(tmp_path / "b", "train", 6, seed=1))
    joined = Joined(folders)
    keys = [joined[n].key for n in range(len(joined))]
    assert len(set(keys)) == 10
    assert sorted(key for key in keys if "_" not in key) == ["train-00004", "train-00005"]  # in one folder alone
    assert {key.partition("_")[0] for key in keys if "_" in key} == {"0", "1"}


def test_masks_and_regions_come_along(tmp_path):
    folder = split(tmp_path / "a", "val", 6, masks=True)
    index = write_split(Joined((folder,)), tmp_path / "b", "val", "pixel", num_shards=2)
    before, after = ShardFolder(folder), ShardFolder(tmp_path / "b/val")
    assert index.supervision == "pixel"
    for number, key in enumerate(before.keys):
        there = after.number_of_key[key]
        assert np.array_equal(before.mask(number), after.mask(there)) and before.regions(number) == after.regions(there)


def test_folders_that_cannot_be_one_split_are_refused(tmp_path):
    label, pixel = split(tmp_path / "a", "train", 4), split(tmp_path / "b", "val", 4, masks=True)
    with pytest.raises(DataError, match="supervision 'pixel'; .* 'label': they cannot be one split"):
        Joined((label, pixel))
    with pytest.raises(DataError, match="join: .*a/train and .*a/train hold the same images; name them once"):
        Joined((label, label))
    with pytest.raises(DataError, match="no folder named"):
        Joined(())
    assert Index.load(label).num_samples == 4
