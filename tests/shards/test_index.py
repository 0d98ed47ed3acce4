import hashlib
import json
import shutil

import pytest

from shards.index import Index, Shard, name_shared
from shards.schema import SMOKE, DataError
from shards.tars import sha256_of
from shards.verify import verify


@pytest.fixture
def folder(scenes, tmp_path):
    """A copy of the train split to damage."""
    return shutil.copytree(scenes / "train", tmp_path / "train")


def edit(folder, change):
    path = folder / "index.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_sound_folder_verifies(folder):
    index = verify(folder)
    assert index.num_samples == 48
    assert index.class_counts()["smoke"] == sum(label == [1] for shard in index.shards for label in shard.image_labels)


def with_sizes(group, *sizes):
    """An index of images 0, 1 ... of one group and so many bytes each."""
    content = {"name": "train-00000.tar", "bytes": 99, "sha256": "0" * 64}
    content |= {
        "keys": [*map(str, range(len(sizes)))],
        "groups": [group] * len(sizes),
        "image_labels": [[]] * len(sizes),
    }
    spans = [(0, size) for size in sizes]
    return Index.of(SMOKE, "train", "label", [Shard(**content, members={"jpg": spans, "json": spans})])


def test_splits_share_groups_or_images_of_other_groups_but_no_mere_numbers():
    one = with_sizes("a", 5, 6, 7)
    assert name_shared(one, with_sizes("a", 1), "data.val") == "shares 1 groups with data.val, first 'a'"
    assert name_shared(one, with_sizes("b", 9, 6, 7), "data.val") == "shares 2 images with data.val, first '1'"
    assert name_shared(one, with_sizes("b", 5), "data.val") == "shares 1 images with data.val, first '0'"
    assert name_shared(one, with_sizes("b", 1, 6, 9), "data.val") == ""


def damage_cut(path):
    path.write_bytes(path.read_bytes()[:-2000])


def damage_flip(path):
    data = bytearray(path.read_bytes())
    data[3000] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_cut, "bytes; the index says"),
        (damage_flip, "sha256 differs from the index"),
        (lambda path: path.unlink(), "missing"),
        (lambda path: shutil.copy(path, path.with_name("extra.tar")), "extra.tar: not in the index"),
    ],
)
def test_verify_names_every_damaged_shard(folder, damage, message):
    damage(folder / "train-00003.tar")
    with pytest.raises(DataError, match=message) as told:
        verify(folder)
    assert "write the shards again" in str(told.value).lower()


def test_verify_finds_members_that_lie_elsewhere(folder):
    edit(folder, lambda index: index["shards"][0]["members"]["jpg"][0].__setitem__(0, 0))
    with pytest.raises(DataError, match="members are not where the index says"):
        verify(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: i.update(schema_version=9), "schema_version"),
        (lambda i: i["shards"][0].update(name="../x.tar"), "must be a plain NAME.tar"),
        (lambda i: i["shards"][0]["keys"].pop(), r"lists of \[3, 4\] samples; wanted equal, non-empty lists"),
        (lambda i: i["shards"][0].update(frames=[None]), r"lists of \[1, 4\] samples"),
        (lambda i: i["shards"][0].update(keys=[], groups=[], image_labels=[], members={}), r"lists of \[0\] samples"),
        (lambda i: i["shards"][0].update(sha256="../x"), "sha256 is '../x'; wanted 64 hex digits"),
        (lambda i: i["shards"][1].update(name=i["shards"][0]["name"]), r"shards appear twice: \['train-00000.tar'\]"),
        (lambda i: i.update(classes=["smoke", "smoke"]), r"classes appear twice: \['smoke'\]"),
        (lambda i: i.update(classes=[]), "0 classes; wanted 1 to 254"),
        (lambda i: i.update(classes=[*map(str, range(255))]), "255 classes; wanted 1 to 254"),
        (lambda i: i["shards"][0]["members"]["jpg"].__setitem__(0, [-1, 9]), "a 'jpg' member lies outside"),
        (lambda i: i["shards"][0]["members"]["jpg"].__setitem__(0, [9, 0]), "a 'jpg' member lies outside"),
        (lambda i: i["shards"][1]["keys"].__setitem__(0, i["shards"][1]["keys"][1]), "keys appear twice"),
        (lambda i: i["shards"][0]["image_labels"].__setitem__(0, [7]), r"label holds class ids \[7\]"),
        (lambda i: i["shards"][0]["members"]["jpg"].__setitem__(0, [0, 10**9]), "lies outside"),
        (lambda i: i["shards"][1]["keys"].__setitem__(0, i["shards"][0]["keys"][0]), "keys appear twice"),
        (lambda i: i["shards"][0]["keys"].__setitem__(0, "a/b"), "unusable keys"),
        (lambda i: i.update(shards=[]), "holds no sample"),
        (lambda i: i.update(supervision="pixel"), "members .*; supervision 'pixel' means"),
        (
            lambda i: i["shards"][0]["members"].update(png=i["shards"][0]["members"]["jpg"]),
            "label-only shard holds no mask",
        ),
        (lambda i: i.update(typo=1), "typo"),
    ],
)
def test_a_wrong_index_is_refused_with_the_place(folder, change, message):
    edit(folder, change)
    with pytest.raises(DataError, match=message) as told:
        Index.load(folder)
    assert "index.json" in str(told.value)


def test_an_index_that_is_no_json_and_a_folder_without_one_are_told(folder, scenes):
    (folder / "index.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(DataError, match="index.json"):
        Index.load(folder)
    with pytest.raises(DataError, match=r"no shards here .*it holds the splits \['train', 'tune', 'val'\]"):
        Index.load(scenes)
    with pytest.raises(DataError, match="write it with `wsss shards`"):
        Index.load(folder / "gone")


def test_the_fingerprint_follows_the_bytes_and_the_meaning(scenes, folder):
    content = f'[1, ["smoke"], "label", ["{"0" * 64}"]]'  # run.json keeps it: no version may change it
    assert with_sizes("a", 5).fingerprint == hashlib.sha256(content.encode()).hexdigest()[:16]
    index = Index.load(folder)
    assert index.fingerprint == Index.load(scenes / "train").fingerprint != Index.load(scenes / "val").fingerprint
    changed = index.model_copy(update={"classes": ("fog",)})
    assert changed.fingerprint != index.fingerprint
    assert index.shards[0].sha256 == sha256_of(folder / index.shards[0].name)
