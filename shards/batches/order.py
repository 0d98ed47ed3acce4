"""Which samples make which step: a function of seed, step and global batch size."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from shards.folder import WINDOW
from shards.schema import DataError


def epoch_order(shard_sizes: Sequence[int], seed: int, epoch: int, window: int = WINDOW) -> np.ndarray:
    """Sample numbers 0..N-1 in the order of this epoch.

    Shards are permuted, then the samples of each run of `window` shards are permuted among themselves.
    """
    rng = np.random.default_rng((seed, epoch))
    starts = np.concatenate([[0], np.cumsum(shard_sizes)])
    shards = rng.permutation(len(shard_sizes))  # as shard_order says, of the same generator
    order = []
    for first in range(0, len(shards), window):
        together = [np.arange(starts[s], starts[s + 1]) for s in shards[first : first + window]]
        order.append(rng.permutation(np.concatenate(together)))
    return np.concatenate(order)


def shard_order(num_shards: int, seed: int, epoch: int) -> np.ndarray:
    """The shards in the order of this epoch; each run of WINDOW of them is read together."""
    return np.random.default_rng((seed, epoch)).permutation(num_shards)


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Which part of each global batch a reader takes: micro-batch m of rank r is part m*ranks + r."""

    rank: int
    ranks: int
    global_batch_size: int
    accumulate: int = 1

    def __post_init__(self) -> None:
        if self.global_batch_size % (self.ranks * self.accumulate):
            raise DataError(
                f"global batch size {self.global_batch_size} does not divide into {self.ranks} ranks x "
                f"{self.accumulate} micro-batches: change data.global_batch_size, launch.processes or train.accumulate"
            )

    @property
    def micro_batch_size(self) -> int:
        return self.global_batch_size // (self.ranks * self.accumulate)

    def positions(self, step: int) -> Iterator[range]:
        """Positions of this rank's micro-batches of a step (0-based), in the endless stream of epochs."""
        for micro in range(self.accumulate):
            first = step * self.global_batch_size + (micro * self.ranks + self.rank) * self.micro_batch_size
            yield range(first, first + self.micro_batch_size)


class StepSampler:
    """Endless (epoch, sample number) lists for a DataLoader, one per micro-batch, beginning with `first_step`."""

    def __init__(self, shard_sizes: Sequence[int], seed: int, part: Slice, first_step: int = 0) -> None:
        self.num_samples = sum(shard_sizes)
        self.part = part
        self.first_step = first_step
        self.order_of = lru_cache(maxsize=2)(lambda epoch: epoch_order(shard_sizes, seed, epoch))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step = self.first_step
        while True:
            for positions in self.part.positions(step):
                places = (divmod(position, self.num_samples) for position in positions)
                yield [(epoch, int(self.order_of(epoch)[row])) for epoch, row in places]
            step += 1
