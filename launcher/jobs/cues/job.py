"""The cues of image shards as a job of a network. Apart from shards.py, since it imports torch."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from launcher.errors import RunError, user_error_as
from launcher.jobs.cues.cue import Cue
from launcher.jobs.network_job import NetworkJob, SamplesOf, try_together
from launcher.jobs.over_shards import Members
from launcher.jobs.pool import open_shards


@dataclass(frozen=True, kw_only=True)
class CueJob(NetworkJob):
    """Cues of one kind, with these settings."""

    cue: Cue

    @contextmanager
    def opened(self) -> Iterator[SamplesOf]:
        images, cue = open_shards(self.shards, self.fingerprint), self.cue
        with user_error_as(RunError):  # wsss knows no user
            make = cue.start(torch.device("cuda" if torch.cuda.is_available() else "cpu"), images.index.classes)

        def samples_of(name: str) -> Generator[tuple[int, Members]]:
            numbers = images.numbers_of(name)
            for first in range(0, len(numbers), cue.images_at_a_time):
                batch = numbers[first : first + cue.images_at_a_time]
                where = [images.where(number) for number in batch]
                found = try_together(make, [images.image(number) for number in batch], where)
                for number, made in zip(batch, found, strict=True):
                    yield number, {cue.extension: cue.encode(made)}

        yield samples_of
