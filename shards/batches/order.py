"""Which samples form a step, as a function of seed, step and global batch size; which frames form a pair."""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from shards.folder import WINDOW
from shards.schema import DataError, Frame


def epoch_order(shard_sizes: Sequence[int], seed: int, epoch: int, window: int = WINDOW) -> np.ndarray:
    """Sample numbers 0..N-1 in the order of this epoch.

    Shards are permuted; then samples are permuted within each group of `window` consecutive shards.
    """
    rng = np.random.default_rng((seed, epoch))
    starts = np.concatenate([[0], np.cumsum(shard_sizes)])
    shards = rng.permutation(len(shard_sizes))  # as in shard_order, from the same generator
    order = []
    for first in range(0, len(shards), window):
        together = [np.arange(starts[s], starts[s + 1]) for s in shards[first : first + window]]
        order.append(rng.permutation(np.concatenate(together)))
    return np.concatenate(order)


def shard_order(num_shards: int, seed: int, epoch: int) -> np.ndarray:
    """The shards in the order of this epoch; each WINDOW consecutive ones are read together."""
    return np.random.default_rng((seed, epoch)).permutation(num_shards)


@dataclass(frozen=True, kw_only=True)
class Slice:
    """The part of each global batch that a reader takes: micro-batch m of rank r is part m*ranks + r."""

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


PAIR = 1  # separates the draw of a neighbour from those of its augmentation


class Neighbours:
    """The frames of the same clip that are at most `within` frame numbers away.

    Raises:
        DataError: no frame has a neighbour, or two frames of a clip have the same number.
    """

    def __init__(self, frames: Sequence[Frame | None], within: int, where: str) -> None:
        self.frames, self.within = frames, within
        self.clips: dict[str, list[tuple[int, int]]] = defaultdict(list)  # clip: (number in it, sample number)
        for sample, frame in enumerate(frames):
            if frame is not None:
                self.clips[frame.clip].append((frame.number, sample))
        nearest = None
        for clip, found in self.clips.items():
            found.sort()
            gaps = [after[0] - before[0] for before, after in pairwise(found)]
            if 0 in gaps:
                raise DataError(
                    f"{where}: two frames of the clip '{clip}' have the number {found[gaps.index(0)][0]}; number them "
                    "differently"
                )
            nearest = min([*gaps, *([] if nearest is None else [nearest])], default=None)
        if nearest is None:
            raise DataError(
                f"{where}: data.pairs needs two frames of one clip, but there are none; write shards of clips, or of a "
                "table with --frame-column"
            )
        if nearest > within:
            raise DataError(f"{where}: frames of a clip are {nearest} apart or more; data.pairs is {within}: raise it")

    def draw(self, sample: int, seed: int, epoch: int) -> int:
        """A random neighbour of a sample; the sample itself if it has none."""
        frame = self.frames[sample]
        if frame is None:
            return sample
        clip = self.clips[frame.clip]
        first = bisect_left(clip, (frame.number - self.within, -1))
        last = bisect_right(clip, (frame.number + self.within, len(self.frames)))
        near = [number for _, number in clip[first:last] if number != sample]
        return near[np.random.default_rng((seed, epoch, sample, PAIR)).integers(len(near))] if near else sample


class StepSampler:
    """Endless lists of places for a DataLoader, one per micro-batch, beginning with `first_step`.

    A place is (epoch, sample number). With `neighbours`, positions of the stream count pairs, and a place is (epoch,
    number of the pair's first frame, sample number); every sample is the first frame of a pair once per epoch.

    Raises:
        DataError: a micro-batch would split a pair.
    """

    def __init__(
        self,
        shard_sizes: Sequence[int],
        seed: int,
        part: Slice,
        first_step: int = 0,
        neighbours: Neighbours | None = None,
    ) -> None:
        if neighbours and part.micro_batch_size % 2:
            raise DataError(
                f"data.pairs: a process has {part.micro_batch_size} images at a time; wanted an even number: change "
                "data.global_batch_size, launch.processes or train.accumulate"
            )
        self.num_samples = sum(shard_sizes)
        self.part, self.seed, self.neighbours = part, seed, neighbours
        self.first_step = first_step
        self.order_of = lru_cache(maxsize=2)(lambda epoch: epoch_order(shard_sizes, seed, epoch))

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        step = self.first_step
        while True:
            for positions in self.part.positions(step):
                if self.neighbours is None:
                    yield [self.place(position) for position in positions]
                else:
                    firsts = [self.place(position // 2) for position in positions[::2]]
                    yield [place for first in firsts for place in self.pair(*first, self.neighbours)]
            step += 1

    def place(self, position: int) -> tuple[int, int]:
        epoch, row = divmod(position, self.num_samples)
        return epoch, int(self.order_of(epoch)[row])

    def pair(self, epoch: int, first: int, neighbours: Neighbours) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (epoch, first, first), (epoch, first, neighbours.draw(first, self.seed, epoch))
