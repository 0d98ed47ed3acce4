"""Loader processes: who forks them, what signals do to them, and that none outlives the process that it reads for."""

import contextlib
import multiprocessing
import os
import signal
import sys

import psutil
import pytest
from torch.utils.data import Dataset

from shards.batches import processes, waiting
from shards.batches.augment import Augment, Squash
from shards.batches.loaders import eval_loader, train_loader
from shards.batches.order import Slice
from shards.batches.waiting import PatientLoader
from shards.folder import ShardFolder


def batches_of(scenes, workers=1):
    part = Slice(rank=0, ranks=1, global_batch_size=4)
    shards = ShardFolder(scenes / "train", "label")
    return iter(train_loader(shards, Augment(size=16), seed=0, part=part, workers=workers))


def test_no_loader_forks_a_process_that_has_threads(scenes, monkeypatch):
    def refuse():
        raise AssertionError("a fork copies the locks of other threads")

    monkeypatch.setattr(os, "fork", refuse)
    next(batches_of(scenes))
    next(iter(eval_loader(ShardFolder(scenes / "val"), Squash(size=16), batch_size=2, numbers=range(4), workers=1)))


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has no /proc that says what the reader does")
@pytest.mark.parametrize("method", ["forkserver", "spawn"])  # of a Mac
def test_a_loader_process_takes_a_sigterm_as_its_reader_does(scenes, method, monkeypatch):
    """Slurm may send it to every process of a job; a run that catches it needs batches until it stops."""
    for room in (processes, waiting):
        monkeypatch.setattr(room, "METHOD", method)
    others = set(multiprocessing.active_children())  # of tests before this one
    batches = batches_of(scenes)
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - others
    group = {psutil.Process(worker.pid), psutil.Process(worker.pid).parent()} - {psutil.Process()}
    assert len(group) == 1 + (method == "forkserver")
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        for one in group:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                one.send_signal(number)
        for _ in range(8):
            next(batches)
    finally:
        signal.signal(signal.SIGTERM, before)
    worker.terminate()
    with contextlib.suppress(RuntimeError):  # torch tells the parent of a loader process that died
        worker.join(30)
    assert worker.exitcode == 0  # as torch ends it: a parent that ends would take another code for a failure


def read(scenes, queue):
    batches = batches_of(scenes, workers=2)
    next(batches)
    queue.put([process.pid for process in psutil.Process().children(recursive=True)])
    signal.pause()


def test_no_process_outlives_a_reader_that_is_killed(scenes):
    context = multiprocessing.get_context(processes.METHOD)
    queue = context.Queue()
    reader = context.Process(target=read, args=(scenes, queue))
    reader.start()
    below = [psutil.Process(pid) for pid in queue.get(timeout=60)]
    reader.kill()
    assert len(below) >= 3 and not psutil.wait_procs(below, timeout=30)[1]


@pytest.mark.skipif(processes.METHOD != "forkserver", reason="no server forks here")
def test_the_server_imports_what_its_starter_does_and_nothing_of_the_working_folder(monkeypatch):
    seen = []
    monkeypatch.setattr("multiprocessing.forkserver.ensure_running", lambda: seen.append(dict(os.environ)))
    monkeypatch.setenv("PYTHONPATH", "theirs")
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    before = dict(os.environ)
    processes.start_server()
    assert dict(os.environ) == before
    assert seen[0]["PYTHONSAFEPATH"] == "1"
    assert seen[0]["PYTHONPATH"].split(os.pathsep) == [place for place in sys.path if place]


def test_a_script_that_opens_a_loader_is_not_run_again():
    main = sys.modules["__main__"]
    with processes.starting():
        assert sys.modules["__main__"] is not main and not hasattr(sys.modules["__main__"], "__file__")
    assert sys.modules["__main__"] is main
    with pytest.raises(KeyError), processes.starting():
        raise KeyError
    assert sys.modules["__main__"] is main


class Says(Dataset):
    """The value of a variable in the process that reads."""

    def __getitem__(self, name):
        return os.environ.get(name, "")


def test_a_loader_process_has_the_variables_of_its_reader_and_not_those_of_the_server(monkeypatch):
    names = ["WSSS_SET_LATE", "WSSS_GONE"]
    monkeypatch.setenv("WSSS_GONE", "1")
    processes.start_server()
    monkeypatch.setenv("WSSS_SET_LATE", "1")
    monkeypatch.delenv("WSSS_GONE")
    assert list(PatientLoader(Says(), num_workers=1, sampler=names, batch_size=None)) == ["1", ""]
