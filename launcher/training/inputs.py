"""What a run reads: opened once, checked before anything trains, and as batches."""

import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from launcher.config.file import flatten
from launcher.config.sections import Config
from launcher.errors import ConfigError, RunError, user_error_as
from launcher.evaluation.validate import check_keep_best
from launcher.files import Damaged, set_aside
from launcher.jobs import output as jobs
from launcher.jobs.infer import try_cams
from launcher.processes.accelerator import process_count
from launcher.processes.buffers import refuse_unequal_state
from launcher.run import steps
from launcher.run.build import build_method
from launcher.run.folder import ABOUT, CONFIG, Run, is_run, run_folder
from launcher.run.lock import require_writable
from launcher.run.start import find_further_weights, find_weights
from launcher.tracking.sinks import require_installed
from launcher.training.loaders import make_loader, make_pixel_loader
from shards.batches.batch import Batch, MaskOf
from shards.folder import ShardFolder
from shards.masks import MaskFolder
from shards.remote import Place
from shards.schema import ClassSet, hint_at_order
from shards.tars import sha256_of
from wsss.methods import METHODS
from wsss.methods.base import Frozen, Method
from wsss.models.base import Network

# Settings that do not change the trained weights, so that a run may go on with others.
FREE_TO_CHANGE = (
    *("launch.", "tracking.", "cam.", "refine.", "segment.", "evaluate."),
    *("data.val", "data.tune", "data.workers", "data.max_skipped"),
    *("train.log_every", "train.eval_every", "train.save_every", "train.keep", "train.graph"),
)


class Inputs:
    """All that a run reads: its data, its masks, its teacher. Each is opened when it is first needed, and then kept."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @cached_property
    def train(self) -> ShardFolder:
        """The folder of data.train, which must hold masks if, and only if, the method learns from masks that lie there.

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
        return open_with_masks(self.config.data.pixel)

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
        A flipped bit that still decodes would be trained on."""
        if self.masks is not None:
            self.masks.compare(self.masks.names[rank::ranks])

    @cached_property
    def masks_made_of(self) -> dict[str, Any]:
        """What data.masks was made of; {} if there is none."""
        return (self.config.data.masks and jobs.read_made_of(self.config.data.masks)) or {}

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
        """{what: its identity} of all but data.train that the run learns from. Paths alone would not tell: a teacher
        may be trained on, masks may be made anew."""
        found = {}
        if self.teacher is not None:
            folder = self.teacher.checkpoint()
            digests = steps.read_state(folder).get("sha256", {})  # none of before there were hashes
            found["teacher"] = f"{folder.name}, sha256 {digests.get(steps.MODEL, 'unknown')}"
        if self.config.data.masks is not None:
            made_of = json.dumps(jobs.without_places(self.masks_made_of), sort_keys=True)
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
        """Open everything, so that what is wrong is said before any process starts to train.

        Raises:
            ConfigError: the package of a tracker is not installed, or train.keep_best names a figure that validation
                does not give.
            DataError: shards that cannot be read, or with masks where there must be none.
            RunError: the run was begun with other settings, splits share groups or have other classes, there is no
                teacher, or masks of other images.
        """
        require_installed(self.config.tracking.to)
        train, folder = self.train.index, run_folder(self.config)
        check_keep_best(self.config, self.class_set, self.val)
        if (begun := run_to_go_on_with(folder)) is not None:
            check_same_run(begun, self.config, train.fingerprint, self.learns_from)
        train_groups = train.groups | (set() if self.pixel is None else self.pixel.index.groups)
        for name, shards in (("val", self.val), ("tune", self.tune), ("pixel", self.pixel)):
            if shards is None:
                continue
            if shards.index.classes != train.classes:
                raise RunError(
                    f"data.{name}: {shards.folder} has classes {shards.index.classes}, data.train {train.classes}"
                    f"{hint_at_order(shards.index.classes, train.classes)}"
                )
            shared = sorted(shards.index.groups & train_groups)
            if shared and name != "pixel":
                raise RunError(
                    f"data.{name}: {shards.folder} shares {len(shared)} groups with training, first '{shared[0]}': "
                    "move whole groups to one split, and write the shards again"
                )
        if self.teacher is not None:
            self.teacher.checkpoint()

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
    """The run that was begun in a folder. Where its config or run.json is damaged, that is set aside: its checkpoints
    may be sound, and the training that now begins writes both anew."""
    if not is_run(folder):
        return None
    try:
        return Run(folder)
    except Damaged as error:
        name = CONFIG if str(error).startswith(f"{folder / CONFIG}:") else ABOUT
        set_aside(folder / name, f"{error}; the run's settings and data are not compared with those of its beginning")
        return None


def open_with_masks(folder: Place | None) -> ShardFolder | None:
    return ShardFolder(folder, "pixel") if folder else None


def check_same_run(run: Run, config: Config, fingerprint: str, learns_from: dict[str, str]) -> None:
    """Raise RunError if the run was begun on other data, or with other settings that change its weights.

    Data, a teacher and initial weights are known by their content: where they lie, and what the run is called, may
    change (D-96).

    Args:
        config: what it shall go on with.
        fingerprint: of data.train.
        learns_from: see Inputs.learns_from.
    """
    then = run.about.get("learns_from", {})
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


def preflight(config: Config) -> int:
    """Find in one process what would otherwise stop all of them, some of it after hours: wrong data, a missing teacher,
    weights that do not fit, state that the processes would not share, a kind of CAM that the method does not have, a
    batch that they cannot share. Weights that must be downloaded are, before several processes want them at once.

    Returns:
        How many processes train: what launch.processes says, else as many GPUs as the batch divides into.

    Raises:
        ConfigError: settings that contradict each other; and see Inputs.check.
    """
    require_writable(run_folder(config))
    inputs = Inputs(config)
    inputs.check()
    if not config.tracking.to and "to" not in config.tracking.model_fields_set:
        print("metrics go to the run's folder alone; for MLflow: pip install 'wsss[mlflow]'", file=sys.stderr)
    method = build_method(config, inputs.class_set, inputs.teacher)
    processes = choose_processes(config, method)
    inputs.loaders_from(0, rank=0, ranks=processes)
    refuse_unequal_state(method, processes)
    check_image_size(method, config.data.image_size)
    if method.gives_maps:
        try_cams(method, config)
    return processes


def check_image_size(method: Method, side: int) -> None:
    """Raise ConfigError if a network of the method, or its teacher, takes no images of data.image_size."""
    networks = [module for module in method.modules() if isinstance(module, Network)]
    networks += [part.network for part in vars(method).values() if isinstance(part, Frozen)]
    for network in networks:
        try:
            network.check_size(side, side)
        except ValueError as error:
            raise ConfigError(f"data.image_size: {error}") from error


def choose_processes(config: Config, method: Method) -> int:
    """See preflight."""
    available, machines = process_count(config), config.launch.machines
    if config.launch.processes is None:
        for fewer in range(available, machines - 1, -machines):
            with suppress(ValueError):
                check_share(config, method, fewer)
                return fewer
    with user_error_as(ConfigError):
        check_share(config, method, available)
    return available


def check_share(config: Config, method: Method, processes: int, accumulate: int | None = None) -> int:
    """Images of one process and micro-batch. Raises ValueError if the batch cannot be shared out so.

    Args:
        accumulate: micro-batches of an update; None: the config's.
    """
    accumulate = accumulate or config.train.accumulate
    images, rest = divmod(config.data.global_batch_size, processes * accumulate)
    if rest:
        raise ValueError(
            f"data.global_batch_size {config.data.global_batch_size} does not divide into {processes} processes x "
            f"{accumulate} micro-batches: set launch.processes, train.accumulate or the batch"
        )
    try:
        method.check_images(images)
        if config.data.pairs and images % 2:
            raise ValueError("data.pairs: these are no pairs of frames; wanted an even number")
    except ValueError as error:
        raise ValueError(
            f"{config.data.global_batch_size} images over {processes} processes x {accumulate} micro-batches: {error}"
        ) from None
    return images
