import os
from pathlib import Path

import pytest

from shards import files


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "figures.json"
    files.write_whole(path, "ä")
    assert path.read_bytes() == "ä".encode()
    with pytest.raises(ZeroDivisionError), files.appearing(path) as temporary:
        temporary.write_text("half")
        assert path.read_bytes() == "ä".encode()
        1 / 0  # noqa: B018
    files.write_whole(path, b"\xff")
    assert path.read_bytes() == b"\xff"
    assert [found.name for found in tmp_path.iterdir()] == ["figures.json"]


def test_a_disk_that_takes_no_bytes_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "figures.json"
    files.write_whole(path, "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_whole(path, "new")
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_the_bytes_are_on_the_disk_before_the_name_and_the_name_before_the_end(tmp_path, monkeypatch):
    said, replace = [], Path.replace
    monkeypatch.setattr(files, "sync_to_disk", lambda path: said.append(("synced", path.suffix or "folder")))
    monkeypatch.setattr(Path, "replace", lambda self, to: (said.append(("named", to.name)), replace(self, to)))
    files.write_whole(tmp_path / "figures.json", "{}")
    assert said == [("synced", ".tmp"), ("named", "figures.json"), ("synced", "folder")]


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), files.appearing(tmp_path / "figures.json"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_temporary_name_is_hidden_and_begins_with_the_name_of_the_file(tmp_path):
    for name in ("a.tar", ".a.tar"):  # who removes what a killed process left looks for `.a.tar.*`
        with files.temporary_name(tmp_path / name) as temporary:
            assert temporary.parent == tmp_path
            assert temporary.name.startswith(".a.tar.") and temporary.suffix == ".tmp"
