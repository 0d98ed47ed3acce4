"""The samples of a folder, and the files that reading them keeps open."""

import pickle
import shutil

import psutil

from shards.folder import ShardFolder


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
