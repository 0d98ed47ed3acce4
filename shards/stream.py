"""Shards -> batches.

The order contract: which samples make global step t is a pure function of (seed, t, global batch size).
Positions run on over the epochs, so step t holds positions t*G .. t*G+G-1 whatever the number of ranks,
workers or restarts, and resuming costs one integer. Augmentation is keyed by (seed, epoch, sample).
"""

import json
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from shards.augment import View
from shards.index import Index
from shards.schema import Box, DataError, Supervision, decode_image, decode_mask
from shards.write import check_every_class_has_an_image

Batch = dict[str, Any]
Transform = Callable[[np.ndarray, np.random.Generator, np.ndarray | None], View]
MaskOf = Callable[[int], np.ndarray]  # sample number -> (H, W) class ids

WINDOW = 8  # shards whose samples are mixed with each other: bounds open files and, for remote shards, the cache
OPEN_FILES = 4 * WINDOW


class ShardFolder:
    """The samples of one folder of shards by number, 0..N-1 in index order.

    Raises:
        DataError: no index, a shard missing or cut short, or masks where there must be none.
    """

    def __init__(self, folder: Path, supervision: Supervision | None = None) -> None:
        self.folder = Path(folder)
        self.index = Index.load(self.folder)
        if supervision and self.index.supervision != supervision:
            raise DataError(
                f"{folder}: supervision is '{self.index.supervision}', wanted '{supervision}'; "
                + ("training takes label-only shards, which hold no mask" if supervision == "label" else "masks needed")
            )
        for shard in self.index.shards:
            path = self.folder / shard.name
            size = path.stat().st_size if path.is_file() else None
            if size != shard.bytes:
                got = "missing" if size is None else f"{size} bytes"
                raise DataError(
                    f"{path}: {got}, the index says {shard.bytes} bytes; write or fetch it again, "
                    f"then check with `wsss shards verify {folder}`"
                )
        sizes = [len(shard.keys) for shard in self.index.shards]
        self.shard_of = np.repeat(np.arange(len(sizes)), sizes)
        self.row_of = np.concatenate([np.arange(size) for size in sizes])
        self.keys = [key for shard in self.index.shards for key in shard.keys]
        self.groups = [group for shard in self.index.shards for group in shard.groups]
        self.number_of_key = {key: number for number, key in enumerate(self.keys)}
        class_set = self.index.as_class_set()
        self.image_label_NK = np.stack(
            [class_set.multi_hot(label) for shard in self.index.shards for label in shard.image_labels]
        )
        self._files: OrderedDict[int, int] = OrderedDict()  # shard number -> file descriptor, least recent first

    def __len__(self) -> int:
        return len(self.keys)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict()}

    def where(self, number: int) -> str:
        return f"{self.folder / self.index.shards[self.shard_of[number]].name}: sample '{self.keys[number]}'"

    def read(self, number: int, extension: str) -> bytes:
        """One member's bytes: one positioned read."""
        shard_number = int(self.shard_of[number])
        offset, size = self.index.shards[shard_number].members[extension][self.row_of[number]]
        data = os.pread(self._file(shard_number), size, offset)
        if len(data) != size:
            raise DataError(f"{self.where(number)}: {extension} ends after {len(data)} of {size} bytes: cut short")
        return data

    def image(self, number: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        return decode_image(self.read(number, "jpg"), self.where(number))

    def mask(self, number: int) -> np.ndarray:
        """(H, W) uint8 class ids, 255 = ignore. Raises DataError for label-only shards."""
        if self.index.supervision != "pixel":
            raise DataError(f"{self.where(number)}: these shards are label-only, there is no mask to read")
        return decode_mask(self.read(number, "png"), self.where(number))

    def about(self, number: int) -> dict[str, Any]:
        """What the sample's json says: its label, size, source, group and, in pixel shards, regions."""
        return json.loads(self.read(number, "json"))

    def regions(self, number: int) -> dict[str, list[Box]]:
        """Named boxes of a sample in pixel shards, {} where there are none."""
        regions = self.about(number).get("regions", {})
        return {name: [tuple(box) for box in boxes] for name, boxes in regions.items()}

    def numbers_of(self, shard_name: str) -> list[int]:
        """The sample numbers of one shard, in the order of the file."""
        first = 0
        for shard in self.index.shards:
            if shard.name == shard_name:
                return list(range(first, first + len(shard.keys)))
            first += len(shard.keys)
        raise DataError(f"{self.folder}: has no shard '{shard_name}'")

    def _file(self, shard_number: int) -> int:
        if shard_number in self._files:
            self._files.move_to_end(shard_number)
        else:
            if len(self._files) >= OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
            self._files[shard_number] = os.open(self.folder / self.index.shards[shard_number].name, os.O_RDONLY)
        return self._files[shard_number]


def epoch_order(shard_sizes: Sequence[int], seed: int, epoch: int, window: int = WINDOW) -> np.ndarray:
    """Sample numbers 0..N-1 in the order of this epoch.

    Shards are permuted, then the samples of each run of `window` shards are permuted among themselves.
    """
    rng = np.random.default_rng((seed, epoch))
    starts = np.concatenate([[0], np.cumsum(shard_sizes)])
    shards = rng.permutation(len(shard_sizes))
    order = []
    for first in range(0, len(shards), window):
        together = [np.arange(starts[s], starts[s + 1]) for s in shards[first : first + window]]
        order.append(rng.permutation(np.concatenate(together)))
    return np.concatenate(order)


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
    """(epoch, number) -> the augmented view of that sample; the same view whoever asks, whenever."""

    def __init__(self, shards: ShardFolder, transform: Transform, seed: int, mask_of: MaskOf | None = None) -> None:
        self.shards, self.transform, self.seed, self.mask_of = shards, transform, seed, mask_of

    def __getitem__(self, place: tuple[int, int]) -> Batch:
        epoch, number = place
        rng = np.random.default_rng((self.seed, epoch, number))
        return view_of(self.shards, number, self.transform, rng, self.mask_of)


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
) -> DataLoader:
    """Endless batches of this rank from step `first_step` on: `accumulate` micro-batches per step.

    Never hand it to `accelerator.prepare`, which would slice it a second time.

    Args:
        mask_of: where masks come from, for methods that learn from masks; None = image labels alone.
        may_lack_classes: train although some class has no positive image, as in a small part of a data set.

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
        TrainSamples(shards, transform, seed, mask_of),
        batch_sampler=StepSampler([len(s.keys) for s in shards.index.shards], seed, part, first_step),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
    )


def eval_loader(
    shards: ShardFolder, transform: Transform, *, batch_size: int, numbers: Sequence[int], workers: int
) -> DataLoader:
    """The samples of these numbers in order, each once, the last batch short."""
    batches = [list(numbers[i : i + batch_size]) for i in range(0, len(numbers), batch_size)]
    return DataLoader(
        EvalSamples(shards, transform),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
    )
