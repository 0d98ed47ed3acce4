"""The data that a run reads: opened once, checked before training, and turned into batches."""

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from launcher.config.file import flatten
from launcher.config.whole import Config
from launcher.errors import RunError
from launcher.evaluation.offered_metrics import check_metrics
from launcher.evaluation.validate import check_keep_best
from launcher.files import Damaged, set_aside
from launcher.jobs import output
from launcher.run import steps
from launcher.run.folder import ABOUT, CONFIG, Run, is_run, run_folder
from launcher.run.idle import refuse_idle
from launcher.run.start import find_further_weights, find_weights
from launcher.tracking.sinks import require_installed
from launcher.training.loaders import make_loader, make_pixel_loader
from shards.batches.batch import Batch, MaskOf
from shards.folder import ShardFolder
from shards.index import name_shared
from shards.masks import MaskFolder
from shards.schema import ClassSet, hint_at_order
from shards.tars import sha256_of
from wsss.methods import METHODS

# Settings that do not change the trained weights, so that a run may go on with others.
FREE_TO_CHANGE = (
    *("launch.", "tracking.", "cam.", "refine.", "segment.", "evaluate."),
    *("data.val", "data.tune", "data.workers", "data.max_skipped"),
    *("train.log_every", "train.eval_every", "train.save_every", "train.keep", "train.graph"),
)


class Inputs:
    """Everything that a run reads: data, masks, teacher. Each is opened when it is first needed, and then kept."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @cached_property
    def train(self) -> ShardFolder:
        """The folder of data.train, which must hold masks if and only if the method learns from masks stored there.

        Raises:
            DataError: it holds masks that the method must not see, or none where it needs them.
            RunError: data.masks was made for other images.
        """
        masks = self.config.data.masks
        shards = ShardFolder(self.config.data.train, "pixel" if self.learns_masks and masks is None else "label")
        if masks is not None and self.masks_made_of.get("fingerprint") != shards.index.fingerprint:
            raise RunError(
                f"data.masks: {masks} was made for images of fingerprint {self.masks_made_of.get('fingerprint')}, "
                f"data.train has {shards.index.fingerprint}; infer and refine the training split of "
                f"{self.config.data.train}"
            )
        return shards

    @cached_property
    def val(self) -> ShardFolder | None:
        return ShardFolder(self.config.data.val) if self.config.data.val else None

    @cached_property
    def tune(self) -> ShardFolder | None:
        return ShardFolder(self.config.data.tune) if self.config.data.tune else None

    @cached_property
    def pixel(self) -> ShardFolder | None:
        return ShardFolder(self.config.data.pixel, "pixel") if self.config.data.pixel else None

    @cached_property
    def mask_of(self) -> MaskOf | None:
        """Number of a training sample -> its mask, of data.masks or of data.train; None if the method learns labels."""
        if not self.learns_masks:
            return None
        return self.masks or self.train.mask

    @cached_property
    def masks(self) -> MaskFolder | None:
        """The masks of data.masks, if that is set. Raises DataError if shards are missing."""
        return MaskFolder(self.config.data.masks, self.train) if self.config.data.masks else None

    def compare_masks(self, *, rank: int, ranks: int) -> None:
        """Compare the bytes of one rank's share of data.masks with what was written; raises DataError if they differ.
        Otherwise a flipped bit that still decodes would be used for training."""
        if self.masks is not None:
            self.masks.compare(self.masks.names[rank::ranks])

    @cached_property
    def masks_made_of(self) -> dict[str, Any]:
        """What data.masks was made of; {} if there is none."""
        folder = self.config.data.masks
        return {} if folder is None else output.read_made_of(folder) or {}

    @cached_property
    def teacher(self) -> Run | None:
        return Run(self.config.teacher) if self.config.teacher else None

    @property
    def learns_masks(self) -> bool:
        return METHODS[self.config.method.name].supervision == "mask"

    @property
    def class_set(self) -> ClassSet:
        return self.train.index.as_class_set()

    @cached_property
    def learns_from(self) -> dict[str, str]:
        """{what: its identity} of everything besides data.train that the run learns from. Paths are not enough: a
        teacher may be trained further, masks may be made again."""
        found = {}
        if self.teacher is not None:
            folder = self.teacher.checkpoint()
            found["teacher"] = f"{folder.name}, sha256 {steps.read_state(folder)['sha256'][steps.MODEL]}"
        if self.config.data.masks is not None:
            made_of = json.dumps(output.without_places(self.masks_made_of), sort_keys=True)
            found["data.masks"] = f"made of {hashlib.sha256(made_of.encode()).hexdigest()}"
        if self.pixel is not None:
            found["data.pixel"] = f"fingerprint {self.pixel.index.fingerprint}"
        for section, named in (("model", self.config.model), ("partner", self.config.partner)):
            if named is not None:
                weights, files = find_weights(named), find_further_weights(named)
                files |= {} if weights is None else {"weights": weights}
                found |= {f"{section}.{option}": f"sha256 {sha256_of(file)}" for option, file in files.items()}
        return found

    def check(self) -> None:
        """Open everything, so that errors are reported before any process starts to train.

        Raises:
            ConfigError: the package of a tracker is not installed, train.keep_best names a figure that validation does
                not give, evaluate.metrics has nothing to count on, or an option has no effect beside the others.
            DataError: shards that cannot be read, or with masks where there must be none.
            RunError: the run was begun with other settings, splits share groups or have other classes, there is no
                teacher, or masks of other images.
        """
        require_installed(self.config.tracking.to)
        train, folder = self.train.index, run_folder(self.config)
        check_metrics(self.config, self.val)
        check_keep_best(self.config, self.class_set, self.val)
        begun = run_to_go_on_with(folder)
        if begun is None:  # a run goes on as it began, whatever was refused since
            refuse_idle(self.config)
        else:
            check_same_run(begun, self.config, train.fingerprint, self.learns_from)
        self.check_splits()
        if self.teacher is not None:
            self.teacher.checkpoint()

    def check_splits(self) -> None:
        """Raise RunError if splits have other classes than data.train, or share groups."""
        train = self.train.index
        for name, shards in (("val", self.val), ("tune", self.tune), ("pixel", self.pixel)):
            if shards is not None and shards.index.classes != train.classes:
                raise RunError(
                    f"data.{name}: {shards.folder} has classes {shards.index.classes}, data.train {train.classes}"
                    f"{hint_at_order(shards.index.classes, train.classes)}"
                )
        of_training = {"data.train": self.train, "data.pixel": self.pixel}
        for name, shards, others in (
            ("val", self.val, of_training),
            ("tune", self.tune, {**of_training, "data.val": self.val}),
        ):
            for other, of_other in others.items():
                if shards is None or of_other is None:
                    continue
                if shared := name_shared(shards.index, of_other.index, other):
                    raise RunError(
                        f"data.{name}: {shards.folder} {shared}: move whole groups to one split, and write the shards "
                        "again"
                    )

    def loaders_from(self, step: int, *, rank: int, ranks: int) -> list[DataLoader]:
        """One rank's loaders from a step on: of data.train and, where there is one, of data.pixel."""
        loaders = [make_loader(self.config, self.train, self.mask_of, rank=rank, ranks=ranks, step=step)]
        if self.pixel is not None:
            loaders.append(make_pixel_loader(self.config, self.pixel, rank=rank, ranks=ranks, step=step))
        return loaders

    def batches_from(self, step: int, *, rank: int = 0, ranks: int = 1) -> Iterator[Batch]:
        """One rank's endless micro-batches from a step on, with the few images that have masks where there are any."""
        batches, *pixel = map(iter, self.loaders_from(step, rank=rank, ranks=ranks))
        if not pixel:
            return batches
        return ({**batch, "pixel": few} for batch, few in zip(batches, pixel[0], strict=True))


def run_to_go_on_with(folder: Path) -> Run | None:
    """The run that was begun in a folder. If its config or run.json is damaged, it is moved aside: the checkpoints may
    be intact, and the training that now starts writes both files again."""
    if not is_run(folder):
        return None
    try:
        return Run(folder)
    except Damaged as error:
        name = CONFIG if str(error).startswith(f"{folder / CONFIG}:") else ABOUT
        set_aside(folder / name, f"{error}; the run's settings and data are not compared with those that it began with")
        return None


def check_same_run(run: Run, config: Config, fingerprint: str, learns_from: dict[str, str]) -> None:
    """Raise RunError if the run was begun on other data, or with other settings that change its weights.

    Data, teacher and initial weights are compared by content: their place, and the name of the run, may change (D-96).

    Args:
        config: with which it is to be continued.
        fingerprint: of data.train.
        learns_from: see Inputs.learns_from.
    """
    then = run.about["learns_from"]
    known = {"name", "data.train", *(then.keys() & learns_from.keys())}
    before, now = flatten(run.config.model_dump(mode="json")), flatten(config.model_dump(mode="json"))
    different = [
        f"{key}: {before.get(key)} -> {now.get(key)}"
        for key in {**before, **now}
        if before.get(key) != now.get(key) and key not in known and not key.startswith(FREE_TO_CHANGE)
    ]
    different += [
        f"{what}: {then[what]} -> {learns_from[what]}"
        for what in then
        if learns_from.get(what, then[what]) != then[what]
    ]
    if run.about["dataset_fingerprint"] != fingerprint:
        different.append(f"dataset fingerprint: {run.about['dataset_fingerprint']} -> {fingerprint}")
    if different:
        raise RunError(
            f"{run} exists and was begun with other settings ({'; '.join(different)}): to resume, start it with those, "
            f"which {run.folder / CONFIG} has; a new run needs another name"
        )
