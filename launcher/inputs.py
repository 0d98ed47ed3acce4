"""What a run reads: checked before anything trains, and as batches."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from torch.utils.data import DataLoader

from launcher import checkpoint, jobs
from launcher.build import ABOUT, load_about, run_folder
from launcher.config import Config
from launcher.config_file import flatten
from launcher.errors import RunError
from launcher.trainer import Batch
from shards.augment import Augment
from shards.masks import MaskFolder
from shards.stream import MaskOf, ShardFolder, Slice, Transform, train_loader
from shards.views import TwoViews
from wsss.methods import METHODS

# Settings that do not change the trained weights, so that a run may go on with others.
FREE_TO_CHANGE = (
    *("launch.", "tracking.", "cam.", "refine.", "segment.", "evaluate."),
    *("data.val", "data.tune", "data.workers", "data.max_skipped"),
    *("train.log_every", "train.eval_every", "train.save_every", "train.keep"),
)


def check_inputs(config: Config) -> tuple[ShardFolder, ShardFolder | None]:
    """Open everything that a run reads, so that what is wrong is said before any process starts to train."""
    run = run_folder(config)
    train_shards = training_shards(config)
    if (run / ABOUT).is_file():
        check_same_run(config, run, train_shards.index.fingerprint)
    val_shards = ShardFolder(config.data.val, "pixel") if config.data.val else None
    train_groups = train_shards.index.groups
    if config.data.pixel is not None:
        train_groups = train_groups | ShardFolder(config.data.pixel, "pixel").index.groups
    for name in ("val", "tune", "pixel"):
        folder = getattr(config.data, name)
        if folder is None:
            continue
        other = ShardFolder(folder, "pixel").index
        if other.classes != train_shards.index.classes:
            raise RunError(
                f"data.{name}: {folder} has classes {other.classes}, data.train {train_shards.index.classes}"
            )
        shared = sorted(other.groups & train_groups)
        if shared and name != "pixel":
            raise RunError(f"data.{name}: {folder} shares {len(shared)} groups with training, first '{shared[0]}'")
    if config.teacher is not None:
        load_about(config.teacher)
        checkpoint.latest(config.teacher)
    return train_shards, val_shards


def training_shards(config: Config) -> ShardFolder:
    """The folder of data.train, which must hold masks if, and only if, the method learns from masks that lie there.

    Raises:
        DataError: it holds masks that the method must not see, or none where it needs them.
        RunError: data.masks was made for other images.
    """
    needs_masks = METHODS[config.method.name].supervision == "mask" and config.data.masks is None
    shards = ShardFolder(config.data.train, "pixel" if needs_masks else "label")
    if config.data.masks is not None:
        made_of = jobs.made_of(config.data.masks) or {}
        if made_of.get("fingerprint") != shards.index.fingerprint:
            raise RunError(
                f"data.masks: {config.data.masks} was made for images of fingerprint {made_of.get('fingerprint')}, "
                f"data.train has {shards.index.fingerprint}; infer and refine the training split of {config.data.train}"
            )
    return shards


def learns_from(config: Config) -> dict[str, str]:
    """{what: its identity} of all beside data.train that a run learns from. Paths alone would not tell: a teacher may
    be trained on, masks may be made anew."""
    found = {}
    if config.teacher is not None:
        folder = checkpoint.latest(config.teacher)
        digests = checkpoint.read_state(folder).get("sha256", {})  # none of before there were hashes
        found["teacher"] = f"{folder.name}, sha256 {digests.get(checkpoint.MODEL, 'unknown')}"
    if config.data.masks is not None:
        made_of = json.dumps(jobs.made_of(config.data.masks), sort_keys=True)
        found["data.masks"] = f"made of {hashlib.sha256(made_of.encode()).hexdigest()}"
    if config.data.pixel is not None:
        found["data.pixel"] = f"fingerprint {ShardFolder(config.data.pixel, 'pixel').index.fingerprint}"
    return found


def check_same_run(config: Config, run: Path, fingerprint: str) -> None:
    """Raise RunError if the run was begun on other data, or with other settings that change its weights."""
    config_before, about = load_about(run)
    before, now = flatten(config_before.model_dump(mode="json")), flatten(config.model_dump(mode="json"))
    different = [
        f"{key}: {before.get(key)} -> {now.get(key)}"
        for key in {**before, **now}
        if before.get(key) != now.get(key) and not key.startswith(FREE_TO_CHANGE)
    ]
    then, here = about.get("learns_from", {}), learns_from(config)
    different += [f"{what}: {then[what]} -> {here[what]}" for what in then if here.get(what, then[what]) != then[what]]
    if about["dataset_fingerprint"] != fingerprint:
        different.append(f"dataset fingerprint: {about['dataset_fingerprint']} -> {fingerprint}")
    if different:
        raise RunError(
            f"{run} exists and was begun with other settings ({'; '.join(different)}): give the new run another name, "
            "or remove the folder"
        )


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
