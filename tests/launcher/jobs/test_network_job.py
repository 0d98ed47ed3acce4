"""What a worker process keeps of a job of a network, and how it tells jobs apart."""

import pickle
from contextlib import contextmanager
from pathlib import Path

import pytest

from launcher.jobs.network_job import Kept, RunJob, WriteThere


class Job:
    def __init__(self, name, done):
        self.name, self.done = name, done

    @contextmanager
    def opened(self):
        if self.name == "broken":
            raise RuntimeError("no such weights")
        self.done.append(f"open {self.name}")
        yield self.name
        self.done.append(f"close {self.name}")


def test_a_worker_keeps_one_network_and_closes_it_before_it_opens_another():
    kept, done = Kept(), []
    first, second = Job("first", done), Job("second", done)
    assert kept.open(first, "a") == kept.open(Job("as the first", done), "a") == (first, "first")
    assert kept.open(second, "b") == (second, "second") and done == ["open first", "close first", "open second"]
    with pytest.raises(RuntimeError, match="no such weights"):
        kept.open(Job("broken", done), "c")
    assert kept.open(second, "b") == (second, "second") and done[3:] == ["close second", "open second"]


def test_a_job_that_is_sent_has_a_key_that_tells_it_from_others():
    def key_of(sent, *overrides):
        of_run = {"run": Path("runs/a"), "checkpoint": "step_0000002", "overrides": overrides}
        job = RunJobOfNothing(out=Path("out"), shards=Path("in"), fingerprint="f", weights="w", **of_run)
        work = WriteThere(job)
        for _ in range(sent):
            work = pickle.loads(pickle.dumps(work))
        return work.key

    assert key_of(1) == key_of(2) == key_of(1) != key_of(1, "cam.flip=true")


class RunJobOfNothing(RunJob):
    def samples(self, trained, images):
        raise NotImplementedError
