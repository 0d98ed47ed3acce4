"""The samples of a folder, and the files that reading them keeps open."""

import os
import pickle
import re
import shutil
from pathlib import Path

import psutil
import pytest

from shards.folder import ShardFolder, decode_about
from shards.schema import DataError, SampleError


def test_a_folder_that_nobody_has_any_more_leaves_no_file_open(scenes, tmp_path):
    place = shutil.copytree(scenes / "val", tmp_path / "val")
    folders = [ShardFolder(place)]
    folders.append(pickle.loads(pickle.dumps(folders[0])))  # as a worker process gets it

    def open_files():
        return [file.path for file in psutil.Process().open_files() if file.path.startswith(str(tmp_path))]

    assert folders[0].read(0, "jpg") == folders[1].read(0, "jpg")
    assert open_files() == [str(place / "val-00000.tar")] * 2
    folders.clear()
    assert open_files() == []


def test_the_file_that_was_read_least_recently_is_closed_for_another(scenes, tmp_path, monkeypatch):
    monkeypatch.setattr("shards.folder.OPEN_FILES", 2)
    shards = ShardFolder(shutil.copytree(scenes / "val", tmp_path / "val"))
    for shard in (0, 1, 0, 2):
        shards.read(shards.numbers_of(f"val-{shard:05d}.tar")[0], "jpg")
    opened = {Path(file.path) for file in psutil.Process().open_files()}
    assert {path.name for path in opened if path.parent == tmp_path / "val"} == {"val-00000.tar", "val-00002.tar"}


def test_what_a_folder_does_not_hold_is_told(scenes, tmp_path, monkeypatch):
    folder = ShardFolder(shutil.copytree(scenes / "val", tmp_path / "val"))
    last, (offset, size) = folder.numbers_of("val-00000.tar")[-1], folder.index.shards[0].members["png"][-1]
    assert len(folder.read(last, "png")) == size
    os.truncate(tmp_path / "val/val-00000.tar", offset + size - 1)  # while it is open
    with pytest.raises(
        DataError, match=rf"'{folder.keys[last]}': png ends after {size - 1} of {size} bytes: cut short"
    ):
        folder.read(last, "png")
    with pytest.raises(DataError, match="val: has no shard 'val-00012.tar'"):
        folder.numbers_of("val-00012.tar")
    monkeypatch.setattr(ShardFolder, "about", lambda self, number: {"regions": {"chimney": [[1, 2]]}})
    with pytest.raises(SampleError, match=f"'{folder.keys[0]}': its regions are not named boxes"):
        folder.regions(0)
    for data, said in (
        (b"{", "its json does not parse (JSONDecodeError)"),
        (b"[1]", "its json is list; wanted an obj"),
    ):
        with pytest.raises(SampleError, match=re.escape(f"here: {said}")):
            decode_about(data, "here")
