import json

import pytest

from shards import digests
from shards.cache import remove_unused
from shards.digests import DIGESTS, find_change, find_written, held_here, publish_noted, read_digests, write_digests
from shards.schema import DataError


def test_what_was_written_is_kept_in_notes_and_then_in_one_file(tmp_path):
    one, two = tmp_path / "a-0.tar", tmp_path / "a-1.tar"
    written = tmp_path / "written"
    written.write_bytes(b"one")
    publish_noted(written, one)
    two.write_bytes(b"three")  # of before there were notes
    assert find_written(one).bytes == 3 and find_written(two) is None and find_change(two) == ""
    write_digests(tmp_path, ["a-0.tar", "a-1.tar"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-0.tar", "a-1.tar", DIGESTS]
    assert {name: kept.bytes for name, kept in read_digests(tmp_path).items()} == {"a-0.tar": 3, "a-1.tar": 5}
    one.write_bytes(b"onE")
    assert find_change(one) == "its sha256 differs from what was written: its bytes have changed"
    two.write_bytes(b"thre")
    assert find_change(two) == "has 4 bytes, but 5 were written"
    written.write_bytes(b"four")
    publish_noted(written, two)  # written anew: the note is newer
    assert find_change(two) == ""
    two.write_bytes(b"fouR")  # before the note became part of the file: what was written counts
    write_digests(tmp_path, ["a-1.tar"])
    assert find_change(two).startswith("its sha256 differs") and not list(tmp_path.glob(".*"))
    assert json.loads((tmp_path / DIGESTS).read_text())["a-1.tar"][0] == 4
    written.write_bytes(b"five!")
    publish_noted(written, f"file://{tmp_path}/b.tar")
    assert (tmp_path / "b.tar").read_bytes() == b"five!" and find_written(f"file://{tmp_path}/b.tar").bytes == 5


def test_a_file_of_digests_that_is_damaged_knows_nothing(tmp_path):
    no_size = json.dumps({"a.tar": ["1", 64 * "0"]})
    for content in ("", "[]", '{"a.tar": 3}', '{"a.tar": [1, 2, 3]}', '{"a.tar": [1, "../../x"]}', no_size):
        (tmp_path / DIGESTS).write_text(content)
        digests.parse_file.cache_clear()
        assert read_digests(tmp_path) == {}


def test_a_shard_of_a_url_is_held_as_a_copy_that_is_what_was_written(tmp_path, monkeypatch):
    monkeypatch.setenv("WSSS_CACHE", str(tmp_path / "cache"))
    written, url = tmp_path / "written", f"file://{tmp_path}/a.tar"
    written.write_bytes(b"one")
    publish_noted(written, url)
    with held_here(url, "run it again") as here:
        assert here.parent == tmp_path / "cache" and here.read_bytes() == b"one" and not remove_unused(here)
    here.write_bytes(b"onE")  # rots in the cache
    with held_here(url, "run it again", written=find_written(url)) as here:
        assert here.read_bytes() == b"onE"  # the reader knows what it was, and looks itself
    with held_here(url, "run it again") as here:
        assert here.read_bytes() == b"one"
    assert remove_unused(here)
    (tmp_path / "a.tar").unlink()
    with (
        pytest.raises(DataError, match="a.tar: not fetched after 1 try .*; or run it again"),
        held_here(url, "run it again"),
    ):
        pass
    gone = f"file://{tmp_path}/b.tar"
    with (
        pytest.raises(DataError, match="b.tar: this file, or shards.json .* is missing; run it again"),
        held_here(gone, "run it again"),
    ):
        pass
