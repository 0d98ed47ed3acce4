"""Loader processes that cannot hand over, die or fall silent: an error that says what to do, never a wait for ever."""

import multiprocessing
import os
import signal
import time
from unittest import mock

import pytest
import torch
from torch.utils.data import Dataset, _utils

from launcher.errors import without_traceback
from shards.batches import waiting
from shards.batches.augment import Augment
from shards.batches.loaders import eval_loader, train_loader
from shards.batches.order import Slice
from shards.batches.processes import METHOD, start_server
from shards.folder import ShardFolder
from shards.schema import DataError

pytestmark = pytest.mark.timeout(60)
by_sockets = pytest.mark.skipif(METHOD != "forkserver", reason="torch and Python use no sockets for it here")


@pytest.fixture(autouse=True, scope="module")
def no_patience_at_the_end():
    """With processes that must be ended; torch waits 5 s for each."""
    with mock.patch.object(_utils, "MP_STATUS_CHECK_INTERVAL", 0.5):
        yield


def batches_of(scenes):
    part = Slice(rank=0, ranks=1, global_batch_size=4)
    shards = ShardFolder(scenes / "train", "label")
    return iter(train_loader(shards, Augment(size=16), seed=0, part=part, workers=1))


@pytest.fixture
def long_tmpdir(tmp_path, monkeypatch):
    """As Slurm's folders per job: a Unix socket in it has no name that the kernel takes."""
    folder = tmp_path / ("a" * 60) / ("b" * 60)
    folder.mkdir(parents=True)
    start_server()
    monkeypatch.setitem(multiprocessing.current_process()._config, "tempdir", str(folder))  # its children have it too


@by_sockets
def test_a_tmpdir_that_is_too_long_is_told_in_the_trainer(scenes, long_tmpdir):
    with pytest.raises(
        DataError, match="could not hand over its batch .*path too long.*TMPDIR.*data.workers=0"
    ) as told:
        next(batches_of(scenes))
    assert without_traceback(str(told.value)).startswith("a loader process could not hand over")


@by_sockets
def test_so_it_is_in_a_job_and_in_validation(scenes, long_tmpdir):
    shards = ShardFolder(scenes / "val")
    with pytest.raises(DataError, match="could not hand over its batch"):
        next(iter(eval_loader(shards, Augment(size=16), batch_size=2, numbers=range(4), workers=1)))


@by_sockets
def test_so_it_is_where_the_server_of_loader_processes_cannot_start(scenes, monkeypatch):
    def refuse():
        raise OSError("AF_UNIX path too long")

    monkeypatch.setattr("multiprocessing.forkserver.ensure_running", refuse)
    with pytest.raises(DataError, match="no loader process can be started .*path too long.*TMPDIR.*data.workers=0"):
        next(batches_of(scenes))


class Odd(Dataset):
    """Samples that need what is not there."""

    def __init__(self, kind):
        self.kind = kind

    def __len__(self):
        return 4

    def __getitem__(self, number):
        if self.kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "silent":
            time.sleep(600)
        if self.kind == "no shared memory":

            class Full(torch.Tensor):
                def __reduce_ex__(self, protocol):
                    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left (28)")

            return torch.zeros(2).as_subclass(Full)
        raise RuntimeError("a mistake of ours")


def first(samples):
    return samples[0]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no shared memory", r"could not hand over its batch .*No space left.*; give it more memory"),
        ("killed", "no batch came from a loader process: DataLoader worker .*data.workers=0"),
        ("silent", "no batch came from a loader process: DataLoader timed out after 1 seconds"),
    ],
)
def test_what_keeps_a_batch_from_coming_is_told(kind, message, monkeypatch):
    monkeypatch.setattr(waiting, "ALONE_S", 1.0 if kind == "silent" else 50.0)
    monkeypatch.setattr(waiting, "LOOK_EVERY_S", 0.5)
    loader = waiting.PatientLoader(Odd(kind), num_workers=1, collate_fn=first)
    with pytest.raises(DataError, match=message) as told:
        next(iter(loader))
    assert ("/dev/shm" in str(told.value)) == os.path.isdir("/dev/shm")


def test_a_mistake_of_ours_is_not_dressed_up_as_the_machines():
    loader = waiting.PatientLoader(Odd("mistaken"), num_workers=1)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        next(iter(loader))


def test_it_is_known_how_long_a_process_waits_for_a_batch(monkeypatch):
    seen = []
    for _ in waiting.watch(iter(lambda: seen.append(waiting.waited_s()) or len(seen), 3)):
        assert waiting.waited_s() == 0.0
    assert len(seen) == 3 and all(waited > 0 for waited in seen)
