"""Shards -> batches.

The order contract: which samples make global step t is a pure function of (seed, t, global batch size).
Positions run on over the epochs, so step t holds positions t*G .. t*G+G-1 whatever the number of ranks,
workers or restarts, and resuming costs one integer. Augmentation is keyed by (seed, epoch, sample).
"""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from shards.augment import View
from shards.folder import WINDOW, ShardFolder
from shards.schema import DataError, SampleError
from shards.write import check_every_class_has_an_image

Batch = dict[str, Any]
Transform = Callable[[np.ndarray, np.random.Generator, np.ndarray | None], View]
MaskOf = Callable[[int], np.ndarray]  # sample number -> (H, W) class ids


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


def view_of(
    shards: ShardFolder, number: int, transform: Transform, rng: np.random.Generator, mask_of: MaskOf | None = None
) -> Batch:
    """One sample as the loaders give it, before batching; with its mask where `mask_of` gives one."""
    view = transform(shards.image(number), rng, mask_of(number) if mask_of else None)
    sample: Batch = {
        "key": shards.keys[number],
        "number": number,
        "image": torch.from_numpy(np.ascontiguousarray(view.image_SS3.transpose(2, 0, 1))),
        "image_label": torch.from_numpy(shards.image_label_NK[number]),
        "box": torch.tensor(view.box),
    }
    for name, array in view.more.items():
        if name in sample:
            raise DataError(f"{type(transform).__name__} gives '{name}', which every sample has: rename it")
        sample[name] = torch.from_numpy(np.array(array))
    if view.mask_SS is not None:
        sample["mask"] = torch.from_numpy(np.array(view.mask_SS))
    return sample


class TrainSamples(Dataset):
    """(epoch, number) -> the augmented view of that sample; the same view whoever asks, whenever.

    Args:
        max_skipped: damaged samples that may be replaced by the next sound sample in index order. What a place of the
            order shows then depends on the bytes of the shards alone, so all other places show what they showed
            before. With a number above 0 every sample says in `skipped` what it replaces, None for nothing.

    Raises:
        SampleError: a damaged sample too many for this reader; the run counts over all readers.
    """

    def __init__(
        self,
        shards: ShardFolder,
        transform: Transform,
        seed: int,
        mask_of: MaskOf | None = None,
        max_skipped: int = 0,
    ) -> None:
        self.shards, self.transform, self.seed, self.mask_of = shards, transform, seed, mask_of
        self.max_skipped = max_skipped
        self.damaged: dict[int, str] = {}  # number -> what is wrong, as far as this process knows
        self.order_of = partial(shard_order, len(shards.index.shards), seed)

    def __getitem__(self, place: tuple[int, int]) -> Batch:
        epoch, number = place
        self.shards.prefetch(epoch, number, self.order_of)
        if not self.max_skipped:
            return self.view(epoch, number, number)
        for shown in (*range(number, len(self.shards)), *range(number)):
            try:
                if shown not in self.damaged:
                    return {**self.view(epoch, number, shown), "skipped": self.skip(number, shown)}
            except SampleError as error:
                self.damaged[shown] = str(error)
                if len(self.damaged) > self.max_skipped:
                    listed = "\n  ".join(self.damaged.values())
                    raise SampleError(
                        f"{len(self.damaged)} damaged samples, data.max_skipped allows {self.max_skipped}:\n  {listed}"
                    ) from error
        raise DataError(f"{self.shards.folder}: no sound sample is left")

    def view(self, epoch: int, number: int, shown: int) -> Batch:
        """The view of sample `shown` at the place of `number`."""
        rng = np.random.default_rng((self.seed, epoch, number))
        return view_of(self.shards, shown, self.transform, rng, self.mask_of)

    def skip(self, number: int, shown: int) -> dict[str, str] | None:
        """What was skipped at the place of `number`, if something was."""
        if shown == number:
            return None
        keys = self.shards.keys
        return {"key": keys[number], "replaced_by": keys[shown], "why": self.damaged[number]}


class EvalSamples(Dataset):
    """number -> the plain view of that sample; its transform must not be random."""

    def __init__(self, shards: ShardFolder, transform: Transform) -> None:
        self.shards, self.transform = shards, transform

    def __getitem__(self, number: int) -> Batch:
        return view_of(self.shards, number, self.transform, np.random.default_rng(0))


def collate(samples: list[Batch]) -> Batch:
    """Stack tensors, list the rest, and add `present` (see present_classes)."""
    first = samples[0]
    batch: Batch = {
        name: torch.stack([s[name] for s in samples]) if torch.is_tensor(value) else [s[name] for s in samples]
        for name, value in first.items()
    }
    return {**batch, "present": present_classes(batch["image_label"])}


def present_classes(image_label_BK: torch.Tensor) -> torch.Tensor:
    """(B, P) int64: the channels 0..K-1 of the classes in each image label, ascending, then -1 up to P.

    P is the largest number of classes of an image in the batch, at least 1.
    """
    width = max(1, int(image_label_BK.sum(dim=1).max()))
    present_BP = torch.full((len(image_label_BK), width), -1)
    image_N, channel_N = image_label_BK.nonzero(as_tuple=True)
    place_BK = image_label_BK.long().cumsum(dim=1) - 1
    present_BP[image_N, place_BK[image_N, channel_N]] = channel_N
    return present_BP


def train_loader(
    shards: ShardFolder,
    transform: Transform,
    *,
    seed: int,
    part: Slice,
    workers: int,
    first_step: int = 0,
    mask_of: MaskOf | None = None,
    may_lack_classes: bool = False,
    max_skipped: int = 0,
) -> DataLoader:
    """Endless batches of this rank from step `first_step` on: `accumulate` micro-batches per step.

    Never hand it to `accelerator.prepare`, which would slice it a second time.

    Args:
        mask_of: where masks come from, for methods that learn from masks; None = image labels alone.
        may_lack_classes: train although some class has no positive image, as in a small part of a data set.
        max_skipped: damaged samples that may be replaced, see TrainSamples.

    Raises:
        DataError: masks in the shards that nobody asked for, a class without a positive image, or more readers
            than shards.
    """
    if shards.index.supervision != "label" and mask_of is None:
        raise DataError(
            f"{shards.folder}: holds masks (supervision 'pixel'); training from image labels reads label-only shards: "
            "write the training split without --masks"
        )
    if not may_lack_classes:
        check_every_class_has_an_image(shards.index, str(shards.folder))
    readers = part.ranks * max(workers, 1)
    if readers > len(shards.index.shards):
        raise DataError(
            f"{len(shards.index.shards)} shards in {shards.folder} cannot feed {part.ranks} ranks x {workers} workers "
            f"= {readers} readers: write them again with --shards {4 * readers} or lower data.workers"
        )
    return DataLoader(
        TrainSamples(shards, transform, seed, mask_of, max_skipped),
        batch_sampler=StepSampler([len(s.keys) for s in shards.index.shards], seed, part, first_step),
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=stay_while_parent_does,
        pin_memory=torch.cuda.is_available(),
    )


def stay_while_parent_does(worker: int) -> None:
    """Let a loader process take a SIGTERM as its parent does, since it may be sent to a whole job: a run that catches
    it decides itself when to stop, and needs batches until then."""

    def end_unless_parent_stays(*_: Any) -> None:
        try:
            status = Path(f"/proc/{os.getppid()}/status").read_text()
        except OSError:
            os._exit(128 + signal.SIGTERM)
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        if not caught >> (signal.SIGTERM - 1) & 1:
            os._exit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, end_unless_parent_stays)


def eval_loader(
    shards: ShardFolder, transform: Transform, *, batch_size: int, numbers: Sequence[int], workers: int
) -> DataLoader:
    """The samples of these numbers in order, each once. No batch crosses a shard, so that what is computed of a shard
    does not depend, in its last bits, on which others are still to do."""
    of_shards = [list(of_shard) for _, of_shard in groupby(numbers, key=lambda number: shards.shard_of[number])]
    batches = [part[i : i + batch_size] for part in of_shards for i in range(0, len(part), batch_size)]
    return DataLoader(
        EvalSamples(shards, transform),
        batch_sampler=batches,
        num_workers=workers if batches else 0,
        collate_fn=collate,
        worker_init_fn=stay_while_parent_does,
        pin_memory=torch.cuda.is_available(),
    )
