"""Any bytes as an index or a tar: a value or a DataError; never another exception, never a hang."""

import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from shards.index import INDEX_NAME, Index, Shard
from shards.index_shard import index_shard
from shards.schema import DataError
from shards.sources.synthetic import Synthetic
from shards.tars import tar_members, tar_spans
from shards.write import write_split

pytestmark = pytest.mark.timeout(120)
MANY = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """A folder with one shard of three samples."""
    out = tmp_path_factory.mktemp("fuzz")
    write_split(
        Synthetic(split="train", num_images=3, size=32), out, "train", "label", num_shards=1, may_lack_classes=True
    )
    return out / "train"


def edited(data, edits):
    """The bytes after (place, remove, insert) edits; places are shares of the length."""
    for place, remove, insert in edits:
        at = int(place * len(data))
        data = data[:at] + insert + data[at + remove :]
    return data


EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from([0, 1, 1, 2, 7, 512, 5000]), st.binary(max_size=12)),
    min_size=1,
    max_size=6,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def load_index(folder, data):
    """An index or None; the test fails on anything but a DataError."""
    (folder / INDEX_NAME).write_bytes(data)
    try:
        return Index.load(folder)
    except DataError as error:
        assert INDEX_NAME in str(error)
        return None


def read_tar(folder, data):
    """A shard or None; the same, and what it says lies inside the file."""
    path = folder / "x.tar"
    path.write_bytes(data)
    members = 0
    try:
        for _, _, (offset, size), content in tar_members(path):
            assert len(content) == size and offset + size <= len(data)
            members += 1
    except DataError as error:
        assert "x.tar" in str(error) and len(str(error)) < 1000
        for same_guard in (lambda path: list(tar_spans(path)), index_shard):
            with pytest.raises(DataError):
                same_guard(path)
        return None
    try:
        shard = index_shard(path)
    except DataError:
        return None
    assert isinstance(shard, Shard) and sum(map(len, shard.members.values())) == members
    return shard


@given(st.binary(max_size=3000))
@MANY
def test_any_bytes_as_an_index(tmp_path, data):
    load_index(tmp_path, data)


@given(EDITS)
@MANY
def test_a_damaged_index(sound, tmp_path, edits):
    load_index(tmp_path, edited((sound / INDEX_NAME).read_bytes(), edits))


@given(st.data())
@MANY
def test_an_index_with_other_values(sound, tmp_path, data):
    content = json.loads((sound / INDEX_NAME).read_text())
    place = data.draw(st.sampled_from([content, content["shards"][0], content["shards"][0]["members"]]))
    place[data.draw(st.sampled_from(sorted(place)))] = data.draw(JSON)
    index = load_index(tmp_path, json.dumps(content).encode())
    assert index is None or index.num_samples == 3


@given(st.binary(max_size=3000))
@MANY
def test_any_bytes_as_a_tar(tmp_path, data):
    read_tar(tmp_path, data)


@given(EDITS)
@example([(0.5, 512, b""), (0.5, 512, b""), (0.3125, 5000, b"")])  # up to zeros that look like a tar's end
@MANY
def test_a_damaged_tar(sound, tmp_path, edits):
    whole = next(sound.glob("*.tar")).read_bytes()
    shard = read_tar(tmp_path, edited(whole, edits))
    assert shard is None or len(shard.keys) == 3  # never fewer samples without a word


def test_a_tar_cut_at_every_block_or_with_any_block_of_zeros(sound, tmp_path):
    whole = next(sound.glob("*.tar")).read_bytes()
    found = []
    for at in range(0, len(whole), 512):
        for damaged in (whole[:at], whole[: at + 1], whole[:at] + bytes(512) + whole[at + 512 :]):
            found.append(read_tar(tmp_path, damaged))
    assert all(shard is None or len(shard.keys) == 3 for shard in found)
    assert None in found and any(found)


NAMES = st.sampled_from(["a.jpg", "a.json", "b.jpg", "../../a.json", "/a.json", ".", "", "a" * 99]) | st.text(
    max_size=20
)
TYPES = st.sampled_from([tarfile.REGTYPE, tarfile.AREGTYPE, *map(bytes, zip(b"123456789xgLKSX\xff"))])
SIZES = st.integers(-600, 600) | st.sampled_from([2**33 - 1, 2**40, -(2**40), 2**64])


@given(st.lists(st.tuples(NAMES, TYPES, SIZES, st.binary(max_size=600)), max_size=5), st.integers(0, 3))
@MANY
def test_headers_that_lie(tmp_path, members, end_blocks):
    data = b""
    for name, kind, size, content in members:
        info = tarfile.TarInfo(name)
        info.type, info.size = kind, size
        data += info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape") + content + bytes(-len(content) % 512)
    read_tar(tmp_path, data + bytes(512 * end_blocks))
