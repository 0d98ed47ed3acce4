import hashlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from support.places import PYTHONPATH

from shards import unfinished
from shards.files import take_lock
from shards.image_bytes import encode_image
from shards.index import Index
from shards.schema import SMOKE, DataError, Sample
from shards.unfinished import MADE_OF, hold_lock, temporary_folder
from shards.write import is_written, write_split


@dataclass(frozen=True)
class Logged:
    """20 images that note in a file when they are read, and of which one may end the process."""

    log: str
    dies_at: int = -1
    fails_at: int = -1
    shade: int = 10
    prefix: str = ""
    class_set = SMOKE

    def __len__(self):
        return 20

    def groups(self):
        return [f"{self.prefix}{number}" for number in range(20)]

    def identity(self):
        return {"shade": self.shade}

    def __getitem__(self, number):
        with open(self.log, "a") as file:
            file.write(f"{number}\n")
        if number == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == self.fails_at:
            raise OSError("no space left on device")
        image = encode_image(np.full((8, 8, 3), self.shade + number, dtype=np.uint8))
        group = f"{self.prefix}{number}"
        return Sample(key=f"k{number}", image=image, image_label=(1,), group=group, source="logged")


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def dealt(num_shards=5):
    """The sample numbers of each shard."""
    return np.array_split(np.random.default_rng(0).permutation(20), num_shards)


def reads(log):
    return [int(line) for line in Path(log).read_text().split()] if Path(log).exists() else []


def write_and_be_killed(out, log, dies_at):
    code = (
        "from pathlib import Path; from shards.write import write_split\n"
        "from tests.shards.test_unfinished import Logged\n"
        f"write_split(Logged({str(log)!r}, dies_at={dies_at}), Path({str(out)!r}), 'train', 'label', num_shards=5)"
    )
    path = PYTHONPATH
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, timeout=120)
    assert done.returncode == -signal.SIGKILL


def test_after_a_kill_the_next_write_does_only_the_missing_shards_and_gives_the_same_bytes(tmp_path):
    third = dealt()[2]
    write_and_be_killed(tmp_path / "out", tmp_path / "first.log", dies_at=third[1])
    assert not (tmp_path / "out/train").exists()
    assert reads(tmp_path / "first.log") == [*dealt()[0], *dealt()[1], *third[:2]]

    write_split(Logged(str(tmp_path / "second.log")), tmp_path / "out", "train", "label", num_shards=5)
    assert reads(tmp_path / "second.log") == [*third, *dealt()[3], *dealt()[4]]

    write_split(Logged(str(tmp_path / "whole.log")), tmp_path / "a/whole", "train", "label", num_shards=5)
    assert digests(tmp_path / "out/train") == digests(tmp_path / "a/whole/train")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["train"]


def failed(tmp_path, **options):
    """A write that failed at the last shard."""
    source = Logged(str(tmp_path / "failed.log"), fails_at=dealt()[4][0], **options)
    with pytest.raises(OSError, match="no space left"):
        write_split(source, tmp_path, "train", "label", num_shards=5)
    (folder,) = tmp_path.glob(".train.*.tmp")
    assert len(list(folder.glob("*.tar"))) == 4
    return folder


def test_a_finished_shard_that_has_changed_is_written_again(tmp_path):
    tar = failed(tmp_path) / "train-00001.tar"
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(data)
    write_split(Logged(str(tmp_path / "log")), tmp_path, "train", "label", num_shards=5)
    assert reads(tmp_path / "log") == [*dealt()[1], *dealt()[4]]
    assert Index.load(tmp_path / "train").num_samples == 20


def test_a_shard_whose_note_was_cut_short_is_written_again(tmp_path):
    note = failed(tmp_path) / ".train-00000.tar.json"
    note.write_text(note.read_text()[:50])
    write_split(Logged(str(tmp_path / "log")), tmp_path, "train", "label", num_shards=5)
    assert reads(tmp_path / "log") == [*dealt()[0], *dealt()[4]]


def test_what_has_no_finished_shard_or_does_not_say_what_it_is_made_of_is_not_gone_on_with(tmp_path):
    with pytest.raises(OSError, match="no space left"):
        write_split(Logged(str(tmp_path / "log"), fails_at=dealt()[0][1]), tmp_path, "train", "label", num_shards=5)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    with temporary_folder(tmp_path / "train", None) as folder:
        pass
    folder.mkdir()  # of a write that was killed, of who knows what
    (folder / "train-00000.tar").touch()
    with temporary_folder(tmp_path / "train", None) as again:
        assert again == folder and not list(again.iterdir())


@pytest.mark.parametrize(("shade", "num_shards"), [(11, 5), (10, 4)])
def test_another_source_or_other_options_begin_anew_and_remove_what_was_left(tmp_path, shade, num_shards):
    folder = failed(tmp_path)
    write_split(Logged(str(tmp_path / "log"), shade=shade), tmp_path, "train", "label", num_shards=num_shards)
    assert sorted(reads(tmp_path / "log")) == list(range(20))
    assert not folder.exists() and not list(tmp_path.glob(".*"))


def test_an_interrupted_write_of_another_split_stays(tmp_path):
    folder = failed(tmp_path)
    write_split(Logged(str(tmp_path / "log"), prefix="other"), tmp_path, "tune", "label", num_shards=5)
    longer = tmp_path / ".train.2.0123456789ab.tmp"  # of the split "train.2"
    longer.mkdir()
    assert folder.exists()
    write_split(Logged(str(tmp_path / "log")), tmp_path, "train", "label", num_shards=4)
    assert longer.exists() and not folder.exists()


def test_a_half_written_folder_is_no_split_that_others_could_share_groups_with(tmp_path):
    folder = failed(tmp_path)
    write_split(Logged(str(tmp_path / "log")), tmp_path / "whole", "train", "label", num_shards=5)
    (folder / "index.json").write_text((tmp_path / "whole/train/index.json").read_text())  # killed before the rename
    assert write_split(Logged(str(tmp_path / "log")), tmp_path, "train", "label", num_shards=5).num_samples == 20


def test_a_second_writer_is_refused_and_told_the_process(tmp_path):
    source = Logged(str(tmp_path / "log"))
    with hold_lock(tmp_path / "train"):
        with pytest.raises(DataError, match=f"train: process {os.getpid()} on .* is writing it"):
            write_split(source, tmp_path, "train", "label")
        assert reads(source.log) == []
    write_split(source, tmp_path, "train", "label")


def test_a_lock_that_a_killed_process_left_is_free(tmp_path):
    (tmp_path / ".train.lock").write_text("process 1 on nowhere")
    with hold_lock(tmp_path / "train"):
        assert str(os.getpid()) in (tmp_path / ".train.lock").read_text()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_whose_file_was_removed_or_replaced_before_it_was_taken_is_taken_anew(tmp_path, monkeypatch):
    path, between = tmp_path / ".train.lock", [path_gone, path_replaced, lambda path: None]

    def late(lock):
        between.pop(0)(path)
        return take_lock(lock)

    monkeypatch.setattr(unfinished, "take_lock", late)
    with hold_lock(tmp_path / "train"):
        assert str(os.getpid()) in path.read_text() and not between
    monkeypatch.setattr(unfinished, "take_lock", lambda lock: None)
    with pytest.raises(DataError, match="train.lock: this file system has no locks"), hold_lock(tmp_path / "train"):
        pass


def path_gone(path):
    path.unlink()


def path_replaced(path):
    path.unlink()
    path.touch()


def test_a_finished_split_is_known_by_what_it_was_made_of(tmp_path):
    source = Logged(str(tmp_path / "log"))
    assert not is_written(source, tmp_path, "train", "label", 5)
    write_split(source, tmp_path, "train", "label", num_shards=5)
    assert is_written(source, tmp_path, "train", "label", 5)
    with pytest.raises(DataError, match="made of something else .num_shards: 5, now 4"):
        is_written(source, tmp_path, "train", "label", 4)
    with pytest.raises(DataError, match="made of something else .source's shade: 10, now 9.;"):
        is_written(Logged(source.log, shade=9), tmp_path, "train", "label", 5)
    for cut in (b"", b"[]", b"\xff", None):
        (tmp_path / "train" / MADE_OF).unlink() if cut is None else (tmp_path / "train" / MADE_OF).write_bytes(cut)
        with pytest.raises(DataError, match="exists already; remove it"):
            is_written(source, tmp_path, "train", "label", 5)
