"""Every hostile input that we thought of: an error that names it, or a skip that is counted; never fewer samples.

One test walks them all. A case damages a folder of shards; three guards look at it in turn: `open` (before the first
step), `read` (the training reader over a whole epoch) and `verify` (every byte). The case says which of them must speak
and what; a guard before it must give every sample, unharmed as far as it goes.
"""

import errno
import gzip
import json
import os
import shutil
import struct
import tarfile
import zlib
from pathlib import Path

import pytest

from shards.batches.augment import Squash
from shards.batches.loaders import train_loader
from shards.batches.order import Slice
from shards.folder import ShardFolder
from shards.index import Index
from shards.index_shard import index_shard
from shards.schema import ClassSet, DataError, SampleError
from shards.sources.synthetic import Synthetic
from shards.tars import tar_members
from shards.verify import verify
from shards.write import write_split, write_tar

pytestmark = pytest.mark.timeout(60)
SAMPLES, SHARD = 8, "train-00001.tar"


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("hostile")
    write_split(Synthetic(split="train", num_images=SAMPLES, size=32), out, "train", "label", num_shards=2)
    return out / "train"


@pytest.fixture
def folder(sound, tmp_path) -> Path:
    return shutil.copytree(sound, tmp_path / "train")


def one_epoch(folder, max_skipped=0):
    shards = ShardFolder(folder, "label")
    part = Slice(rank=0, ranks=1, global_batch_size=SAMPLES)
    loader = train_loader(shards, Squash(size=16), seed=0, part=part, workers=0, max_skipped=max_skipped)
    return next(iter(loader))


# How a folder is damaged. `keep_index` = the index is not told; else a hostile writer makes it fit.


def cut(at):
    def damage(folder):
        path = folder / SHARD
        path.write_bytes(path.read_bytes()[: at(index_shard(path))])

    return damage


def flip(extension, byte):
    """Flip a bit `byte` bytes after the start of the second sample's member; negative: in its header."""

    def damage(folder):
        path = folder / SHARD
        data = bytearray(path.read_bytes())
        data[index_shard(path).members[extension][1][0] + byte] ^= 4
        path.write_bytes(data)

    return damage


def edit_index(change):
    def damage(folder):
        content = json.loads((folder / "index.json").read_text())
        change(content, content["shards"][1])
        (folder / "index.json").write_text(json.dumps(content))

    return damage


def rewrite(change, keep_index=False):
    """Write the shard again from members {key: {extension: bytes}} that a function changed."""

    def damage(folder):
        path, members = folder / SHARD, {}
        for key, extension, _, data in tar_members(path):
            members.setdefault(key, {})[extension] = data
        write_tar(path, change(list(members.items())))
        if not keep_index:
            index = Index.load(folder)
            index.model_copy(update={"shards": (index.shards[0], index_shard(path))}).save(folder)

    return damage


def put(extension, data):
    """Other bytes for the second sample's member, told to the index."""
    return rewrite(lambda members: [(k, {**m, extension: data} if n == 1 else m) for n, (k, m) in enumerate(members)])


def with_member(**attributes):
    """A tar with one strange member before its end."""

    def damage(folder):
        with tarfile.open(folder / SHARD, "a") as tar:
            info = tarfile.TarInfo("strange.jpg")
            for name, value in attributes.items():
                setattr(info, name, value)
            tar.addfile(info)
        with (folder / SHARD).open("ab") as file:
            file.write(bytes(tarfile.RECORDSIZE))  # so that the size changes too, whatever was left in the last record

    return damage


def png_bomb():
    """A PNG of 100000 x 100000 pixels in some 60 bytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


def compressed(folder):
    (folder / SHARD).write_bytes(gzip.compress((folder / SHARD).read_bytes()))


def zero_header(folder):
    """Zeros over a header in the middle: to tar readers, an early end."""
    path = folder / SHARD
    data, at = bytearray(path.read_bytes()), index_shard(path).members["jpg"][2][0]
    data[at - 512 : at] = bytes(512)
    path.write_bytes(data)


def same_key_in_both(content, shard):
    shard["keys"][0] = content["shards"][0]["keys"][0]


def set_in(shard, name, value):
    shard[name] = value


def swapped(members):
    return [members[1], members[0], *members[2:]]


def grown(shard, name, row):
    shard["members"][name] = shard["members"][row]


WRONG_SIZE = f"{SHARD}: .* the index says"
MOVED = "is not where the index says"
CASES = {
    # a tar cut at every kind of place
    "cut: to nothing": (cut(lambda s: 0), "open", WRONG_SIZE),
    "cut: in the first header": (cut(lambda s: 100), "open", WRONG_SIZE),
    "cut: after a header": (cut(lambda s: s.members["jpg"][1][0]), "open", WRONG_SIZE),
    "cut: in a header": (cut(lambda s: s.members["jpg"][1][0] - 200), "open", WRONG_SIZE),
    "cut: in the data": (cut(lambda s: s.members["jpg"][2][0] + 40), "open", WRONG_SIZE),
    "cut: in the padding": (cut(lambda s: sum(s.members["jpg"][1]) + 1), "open", WRONG_SIZE),
    "cut: between two samples": (cut(lambda s: min(s.members[e][1][0] for e in s.members) - 512), "open", WRONG_SIZE),
    "cut: between two members": (cut(lambda s: max(s.members[e][1][0] for e in s.members) - 512), "open", WRONG_SIZE),
    "cut: before the end blocks": (
        cut(lambda s: -(-max(map(sum, s.members["json"])) // 512) * 512),
        "open",
        WRONG_SIZE,
    ),
    # flipped bits, and zeros
    "flipped: a name in a header": (flip("jpg", -512), "read", MOVED),
    "flipped: a size in a header": (flip("jpg", -512 + 132), "read", MOVED),
    "flipped: a checksum": (flip("jpg", -512 + 150), "verify", "sha256 differs from the index"),
    "flipped: the image's first byte": (flip("jpg", 0), "read", "image does not decode"),
    "flipped: a pixel that still decodes": (flip("jpg", 650), "verify", "sha256 differs from the index"),
    "flipped: the json": (flip("json", 0), "verify", "sha256 differs from the index"),
    "zeros over a header": (zero_header, "read", MOVED),
    # files
    "shard: missing": (lambda folder: (folder / SHARD).unlink(), "open", f"{SHARD}: missing"),
    "shard: a folder": (lambda f: ((f / SHARD).unlink(), (f / SHARD).mkdir()), "open", f"{SHARD}: missing"),
    "shard: compressed": (compressed, "open", WRONG_SIZE),
    "shard: changed, samples in another order": (rewrite(swapped, keep_index=True), "read", MOVED),
    "shard: one that nobody knows": (
        lambda f: shutil.copy(f / SHARD, f / "x.tar"),
        "verify",
        "x.tar: not in the index",
    ),
    # what a hostile writer would make, with an index that fits
    "image: garbage": (put("jpg", b"no image" * 99), "read", "image does not decode"),
    "image: empty of pixels": (put("jpg", b"\xff\xd8\xff\xd9"), "read", "image does not decode"),
    "image: a decompression bomb": (put("jpg", png_bomb()), "read", "image does not decode .*decompression bomb"),
    "member: through a path": (with_member(name="../../../evil.jpg"), "open", WRONG_SIZE),
    "member: a link": (with_member(type=tarfile.SYMTYPE, linkname="/etc/passwd"), "open", WRONG_SIZE),
    # indexes
    "index: missing": (lambda folder: (folder / "index.json").unlink(), "open", "index.json is missing"),
    "index: cut": (lambda f: os.truncate(f / "index.json", 900), "open", "index.json: index: Invalid JSON"),
    "index: no text": (
        lambda f: (f / "index.json").write_bytes(b"\xff\x00"),
        "open",
        "index.json: index: Invalid JSON",
    ),
    "index: deep": (lambda f: (f / "index.json").write_text("[" * 100_000), "open", "index.json: index: Invalid JSON"),
    "index: key twice": (edit_index(lambda i, s: set_in(s, "keys", s["keys"][:1] * 4)), "open", "keys appear twice"),
    "index: key twice in two shards": (edit_index(same_key_in_both), "open", "keys appear twice"),
    "index: shard twice": (edit_index(lambda i, s: i["shards"].append(s)), "open", "shards appear twice"),
    "index: label outside": (edit_index(lambda i, s: set_in(s["image_labels"], 0, [2])), "open", r"class ids \[2\]"),
    "index: mask in a label-only shard": (edit_index(lambda i, s: grown(s, "png", "jpg")), "open", "holds no mask"),
    "index: no images": (edit_index(lambda i, s: s["members"].pop("jpg")), "open", "members .* means"),
    "index: shard elsewhere": (edit_index(lambda i, s: set_in(s, "name", "../x.tar")), "open", "must be a plain NAME"),
    "index: a sha256 that is a path": (
        edit_index(lambda i, s: set_in(s, "sha256", "../../x")),
        "open",
        "64 hex digits",
    ),
    "index: a member outside": (edit_index(lambda i, s: set_in(s["members"]["jpg"], 1, [1, 10**9])), "open", "outside"),
    "index: members moved": (edit_index(lambda i, s: set_in(s["members"]["jpg"], 1, [512, 9])), "read", MOVED),
    "index: of other keys": (edit_index(lambda i, s: s["keys"].reverse()), "read", MOVED),
}
GUARDS = {"open": lambda folder: ShardFolder(folder, "label"), "read": one_epoch, "verify": verify}


@pytest.mark.parametrize("case", CASES)
def test_hostile_data_are_named_and_never_fewer_without_a_word(case, folder, sound):
    damage, speaks, message = CASES[case]
    damage(folder)
    for guard, look in GUARDS.items():
        if guard == speaks:
            with pytest.raises(DataError, match=message) as told:
                look(folder)
            assert str(folder) in str(told.value) and len(str(told.value)) < 2000
            break
        seen = look(folder)
        assert guard != "read" or sorted(seen["key"]) == sorted(ShardFolder(sound).keys)
    if not case.startswith("image"):  # where the index does not fit, reading every byte finds whatever it is
        with pytest.raises(DataError):
            verify(folder)
    assert not list(folder.parent.parent.glob("**/*evil*"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        *(
            pytest.param(damage, ".", id=name)
            for name, (damage, _, _) in CASES.items()
            if name.startswith(("cut", "zero"))
        ),
        (with_member(name="../../../evil.jpg"), r"others have .*evil\.jpg.*each has a json"),
        (with_member(name="/etc/passwd.json"), "sample '/etc/passwd': json"),
        (with_member(type=tarfile.SYMTYPE, linkname="/etc/passwd"), "is not a plain file"),
        (with_member(type=tarfile.GNUTYPE_SPARSE), "is not a plain file"),
        (with_member(type=tarfile.DIRTYPE, name="folder"), "is not a plain file"),
        (compressed, "damaged header at byte 0"),
        (flip("jpg", -512 + 150), "damaged header"),
        (flip("json", 0), "json: index: Invalid JSON"),
        (rewrite(lambda m: [(k, {**v, "json": b"[" * 9999}) for k, v in m], True), "json: index: Invalid JSON"),
        (rewrite(lambda m: [(k, {**v, "json": b'{"group": 3}'}) for k, v in m], True), "json: group"),
        (rewrite(lambda m: [(m[0][0], {"jpg": b"x"}), *m[1:]], True), r"has members .*others have"),
        (rewrite(lambda m: [*m, m[0]], True), "two samples have the same key"),
        (rewrite(lambda m: [("a b", m[0][1]), *m[1:]], True), "unusable keys"),
        (rewrite(lambda m: [], True), "wanted equal, non-empty lists"),
    ],
)
def test_no_index_is_made_of_a_damaged_tar(damage, message, folder):
    damage(folder)
    with pytest.raises(DataError, match=message) as told:
        index_shard(folder / SHARD)
    assert SHARD in str(told.value) and len(str(told.value)) < 1000


def test_a_sample_of_a_mask_or_a_class_too_many_cannot_be_indexed(folder):
    shard = index_shard(folder / SHARD)
    masked = shard.model_copy(update={"members": {**shard.members, "png": shard.members["jpg"]}})
    for wrong, message in ((masked, "holds no mask"), (shard, r"class ids")):
        classes = ClassSet(name="smoke", classes=("smoke",))
        if wrong is shard:
            wrong = shard.model_copy(update={"image_labels": [[5]] * len(shard.keys)})
        with pytest.raises(DataError, match=message):
            Index.of(classes, "train", "label", [wrong])


def test_a_disk_that_fails_under_the_reader_is_told(folder, monkeypatch):
    shards = ShardFolder(folder)

    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", broken)
    with pytest.raises(DataError, match=r"sample '.*' \(jpg\): unreadable \(Input/output error\)"):
        shards.image(0)
    monkeypatch.setattr(Path, "open", broken)
    with pytest.raises(DataError, match="unreadable"):
        index_shard(folder / SHARD)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_told(folder):
    (folder / SHARD).chmod(0)
    with pytest.raises(DataError, match=f"{SHARD}: may not be read"):
        ShardFolder(folder)
    (folder / "index.json").chmod(0)
    with pytest.raises(DataError, match=r"index.json: unreadable"):
        ShardFolder(folder)


def test_a_skip_is_no_way_around_a_damaged_shard(folder):
    rewrite(swapped, keep_index=True)(folder)
    with pytest.raises(DataError, match=MOVED) as told:
        one_epoch(folder, max_skipped=100)
    assert not isinstance(told.value, SampleError)
