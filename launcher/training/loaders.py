"""The loaders of a run: training batches from a step on, and batches with masks."""

from torch.utils.data import DataLoader

from launcher.config.whole import Config
from launcher.processes.accelerator import uses_cpu
from shards.batches.augment import Augment
from shards.batches.batch import MaskOf, Transform
from shards.batches.loaders import train_loader
from shards.batches.order import Slice
from shards.batches.views import TwoViews
from shards.folder import ShardFolder
from wsss.methods import METHODS


def make_loader(
    config: Config, shards: ShardFolder, mask_of: MaskOf | None, *, rank: int, ranks: int, step: int
) -> DataLoader:
    """One rank's endless micro-batches of data.train from a step on.

    Args:
        mask_of: number of a sample -> its mask; None = the batches have none.
    """
    part = Slice(
        rank=rank, ranks=ranks, global_batch_size=config.data.global_batch_size, accumulate=config.train.accumulate
    )
    return train_loader(
        shards,
        choose_augment(config),
        seed=config.train.seed,
        part=part,
        workers=config.data.workers,
        first_step=step,
        mask_of=mask_of,
        may_lack_classes=config.data.may_lack_classes,
        max_skipped=config.data.max_skipped,
        pairs=config.data.pairs,
        pin_memory=not uses_cpu(config),
    )


def make_pixel_loader(config: Config, shards: ShardFolder, *, rank: int, ranks: int, step: int) -> DataLoader:
    """The few images with masks, in the training process itself: they are too few for workers."""
    size, accumulate = config.data.pixel_batch_size, config.train.accumulate
    part = Slice(rank=rank, ranks=ranks, global_batch_size=size, accumulate=accumulate)
    return train_loader(
        shards,
        choose_augment(config),
        seed=config.train.seed,
        part=part,
        workers=0,
        first_step=step,
        mask_of=shards.mask,
        may_lack_classes=config.data.may_lack_classes,
        pin_memory=not uses_cpu(config),
    )


def choose_augment(config: Config) -> Transform:
    """The augmentation for the method's batches: one view of an image, or two."""
    if METHODS[config.method.name].views == "two":
        return TwoViews(size=config.data.image_size, scale=config.data.scale, flip=config.data.flip)
    return Augment(size=config.data.image_size, min_crop=config.data.min_crop, flip=config.data.flip)
