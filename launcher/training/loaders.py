"""The loaders of a run: training batches from a step on, and batches with masks."""

from collections.abc import Iterator

from torch.utils.data import DataLoader

from launcher.config.sections import Config
from launcher.errors import RunError
from launcher.jobs import output as jobs
from shards.batches.augment import Augment
from shards.batches.batch import Batch, MaskOf, Transform
from shards.batches.loaders import train_loader
from shards.batches.order import Slice
from shards.batches.views import TwoViews
from shards.folder import ShardFolder
from shards.masks import MaskFolder
from wsss.methods import METHODS


def training_shards(config: Config) -> ShardFolder:
    """The folder of data.train, which must hold masks if, and only if, the method learns from masks that lie there.

    Raises:
        DataError: it holds masks that the method must not see, or none where it needs them.
        RunError: data.masks was made for other images.
    """
    needs_masks = METHODS[config.method.name].supervision == "mask" and config.data.masks is None
    shards = ShardFolder(config.data.train, "pixel" if needs_masks else "label")
    if config.data.masks is not None:
        made_of = jobs.read_made_of(config.data.masks) or {}
        if made_of.get("fingerprint") != shards.index.fingerprint:
            raise RunError(
                f"data.masks: {config.data.masks} was made for images of fingerprint {made_of.get('fingerprint')}, "
                f"data.train has {shards.index.fingerprint}; infer and refine the training split of {config.data.train}"
            )
    return shards


def batches_from(config: Config, shards: ShardFolder, rank: int, ranks: int, step: int) -> Iterator[Batch]:
    """This rank's endless micro-batches from a step on, with the few images that have masks where there are any."""
    batches = iter(loader_of(config, shards, rank, ranks, step))
    if config.data.pixel is None:
        return batches
    pixel = iter(pixel_loader_of(config, rank, ranks, step))
    return ({**batch, "pixel": few} for batch, few in zip(batches, pixel, strict=True))


def loader_of(config: Config, shards: ShardFolder, rank: int, ranks: int, step: int) -> DataLoader:
    mask_of: MaskOf | None = None
    if METHODS[config.method.name].supervision == "mask":
        mask_of = MaskFolder(config.data.masks, shards) if config.data.masks else shards.mask
    part = Slice(
        rank=rank, ranks=ranks, global_batch_size=config.data.global_batch_size, accumulate=config.train.accumulate
    )
    return train_loader(
        shards,
        augment_of(config),
        seed=config.train.seed,
        part=part,
        workers=config.data.workers,
        first_step=step,
        mask_of=mask_of,
        may_lack_classes=config.data.may_lack_classes,
        max_skipped=config.data.max_skipped,
    )


def pixel_loader_of(config: Config, rank: int, ranks: int, step: int) -> DataLoader:
    """The few images with masks, in the training process itself: they are too few for workers."""
    assert config.data.pixel is not None
    shards = ShardFolder(config.data.pixel, "pixel")
    size, accumulate = config.data.pixel_batch_size, config.train.accumulate
    part = Slice(rank=rank, ranks=ranks, global_batch_size=size, accumulate=accumulate)
    return train_loader(
        shards,
        augment_of(config),
        seed=config.train.seed,
        part=part,
        workers=0,
        first_step=step,
        mask_of=shards.mask,
    )


def augment_of(config: Config) -> Transform:
    if METHODS[config.method.name].views == "two":
        return TwoViews(size=config.data.image_size, scale=config.data.scale, flip=config.data.flip)
    return Augment(size=config.data.image_size, min_crop=config.data.min_crop, flip=config.data.flip)
