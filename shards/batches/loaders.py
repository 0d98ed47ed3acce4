"""Shards -> batches.

The samples of global step t are a pure function of (seed, t, global batch size). Positions continue over the epochs, so
step t holds positions t*G .. t*G+G-1 whatever the number of ranks, workers or restarts, and resuming needs only one
integer. Augmentation is keyed by (seed, epoch, sample). In batches of pairs, images 2i and 2i+1 are two frames of a
clip; the second is drawn by (seed, epoch, first one) and augmented like the first.
"""

from collections.abc import Sequence
from functools import partial
from itertools import groupby

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from shards.batches.batch import Batch, MaskOf, Transform, collate
from shards.batches.order import Neighbours, Slice, StepSampler, shard_order
from shards.batches.processes import METHOD
from shards.batches.waiting import PatientLoader
from shards.folder import ShardFolder
from shards.index import check_every_class_has_an_image
from shards.masks import MaskFolder
from shards.schema import DataError, SampleError


def view_of(
    shards: ShardFolder, number: int, transform: Transform, rng: np.random.Generator, mask_of: MaskOf | None = None
) -> Batch:
    """One sample in the form of the loaders, before batching, with its mask if there is `mask_of`."""
    view = transform(shards.image(number), rng, mask_of(number) if mask_of else None)
    sample: Batch = {
        "key": shards.keys[number],
        "number": number,
        "image": torch.from_numpy(view.image_SS3.transpose(2, 0, 1).copy()),
        "image_label": torch.from_numpy(shards.image_label_NK[number]),
        "box": torch.tensor(view.box),
    }
    for name, array in view.more.items():
        if name in sample:
            raise DataError(
                f"{type(transform).__name__} gives '{name}', a name that every sample already has: rename it"
            )
        sample[name] = torch.from_numpy(np.array(array))
    if view.mask_SS is not None:
        sample["mask"] = torch.from_numpy(np.array(view.mask_SS))
    return sample


class TrainSamples(Dataset):
    """A place in the order -> the augmented view of its sample, the same in every process and at any time.

    Args:
        max_skipped: number of damaged samples that may be replaced by the next sound sample in index order. What a
            place shows depends only on the bytes of the shards, so all other places are unchanged. If it is above 0,
            every sample says in `skipped` what it replaces, or None.

    Raises:
        SampleError: more damaged samples than allowed for this reader; the run counts over all readers.
    """

    def __init__(
        self,
        shards: ShardFolder,
        transform: Transform,
        seed: int,
        mask_of: MaskOf | None,
        max_skipped: int,
    ) -> None:
        self.shards, self.transform, self.seed, self.mask_of = shards, transform, seed, mask_of
        self.max_skipped = max_skipped
        self.damaged: dict[int, str] = {}  # number -> what is wrong, as far as this process knows
        self.order_of = partial(shard_order, len(shards.index.shards), seed)

    def __getitem__(self, place: tuple[int, ...]) -> Batch:
        epoch, number = place[:2]
        self.shards.prefetch(epoch, number, self.order_of)
        if isinstance(self.mask_of, MaskFolder):
            self.mask_of.prefetch(epoch, number, self.order_of)
        if not self.max_skipped:
            return self.view(epoch, number, place[-1])
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
        raise DataError(f"{self.shards.folder}: all samples are damaged")

    def view(self, epoch: int, number: int, shown: int) -> Batch:
        """The view of sample `shown` in place of `number`."""
        rng = np.random.default_rng((self.seed, epoch, number))
        return view_of(self.shards, shown, self.transform, rng, self.mask_of)

    def skip(self, number: int, shown: int) -> dict[str, str] | None:
        """What was skipped in place of `number`; None if nothing was."""
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
    pairs: int | None = None,
    pin_memory: bool = False,
) -> DataLoader:
    """Endless batches of this rank from step `first_step` on: `accumulate` micro-batches per step.

    Never pass it to `accelerator.prepare`, which would divide it a second time.

    Args:
        mask_of: gives masks to methods that learn from masks; None = only image labels.
        may_lack_classes: train even if some class has no positive image, as in a small part of a data set.
        max_skipped: number of damaged samples that may be replaced, see TrainSamples; none in pairs.
        pairs: largest distance of the two frames of a pair, in frame numbers; None = single images.
        pin_memory: batches go to a GPU, which then copies them while it computes.

    Raises:
        DataError: shards with masks that are not wanted, a class without a positive image, more readers than shards,
            pairs without a clip of two frames, or pairs that a micro-batch would split.
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
    neighbours = Neighbours(shards.frames, pairs, str(shards.folder)) if pairs else None
    return PatientLoader(
        TrainSamples(shards, transform, seed, mask_of, max_skipped),
        batch_sampler=StepSampler([len(s.keys) for s in shards.index.shards], seed, part, first_step, neighbours),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
    )


def eval_loader(
    shards: ShardFolder,
    transform: Transform,
    *,
    batch_size: int,
    numbers: Sequence[int],
    workers: int,
    pin_memory: bool = False,
) -> DataLoader:
    """The samples of these numbers in order, each once. No batch crosses a shard, so that the results for a shard do
    not depend, in their last bits, on which others are still to be done. Jobs open a loader for each shard, so it has
    no processes where each takes seconds to start (D-189)."""
    of_shards = [list(of_shard) for _, of_shard in groupby(numbers, key=lambda number: shards.shard_of[number])]
    batches = [part[i : i + batch_size] for part in of_shards for i in range(0, len(part), batch_size)]
    return PatientLoader(
        EvalSamples(shards, transform),
        batch_sampler=batches,
        num_workers=0 if METHOD == "spawn" else min(workers, len(batches)),
        collate_fn=collate,
        pin_memory=pin_memory,
    )
