"""Estimates of what a run costs (steps, memory, time, disk space, price), and the assumptions behind them."""

from contextlib import suppress
from dataclasses import dataclass, field

from launcher.config.whole import Config
from launcher.errors import ConfigError, user_error_as
from launcher.plan.gpus import HOST_S, UTILISATION, Gpu
from launcher.plan.step import build_without_values, count_config, teacher_of
from launcher.run.folder import is_run
from launcher.run.start import name_absent
from launcher.training.graph import is_recorded
from launcher.training.preflight import check_image_size, check_share
from shards.folder import ShardFolder
from shards.remote import Place
from shards.schema import ClassSet, DataError
from wsss.methods import METHODS
from wsss.methods.base import Method

GIB = 2**30
CONTEXT_BYTES = int(0.6 * GIB)  # CUDA's context, kernels and libraries
WORKSPACE = 1.1  # factor for scratch memory and what the allocator wastes
DISK_BYTES_S = 0.5e9  # bytes/s for checkpoints
CAM_SIDE = 16  # side in image pixels of one map pixel, at least
MASK_BYTES = 10_000  # size of a PNG of class ids
KNOWN = {
    "voc": (20, 10_582, 1_449),
    "coco": (80, 82_081, 40_137),
}  # (classes, images of train, images of val), if the data is not here

Range = tuple[float, float]  # best, worst


@dataclass
class Plan:
    """All estimates, in bytes, seconds and counts; None = not known without data.

    Attributes:
        images: of one process and micro-batch.
        memory: {part: bytes} of one process.
        largest: number of images of the largest micro-batch that fits.
        accumulate: smallest `train.accumulate` with which the run fits; None: it never does.
        can_checkpoint: `model.checkpointing` exists and is off.
        floor_s: {cause: seconds} of one update with every operator at the peak of the data sheet.
        step_s: of one update.
        disk: {what: bytes}.
        assumed: assumptions, as sentences.
    """

    config: Config
    gpu: Gpu
    processes: int
    images: int
    parameters: int
    flops: int
    launches: int
    memory: dict[str, int]
    largest: int
    accumulate: int | None
    can_checkpoint: bool
    floor_s: dict[str, float]
    step_s: Range
    train_images: int | None
    val_images: int | None
    validations: int
    validation_s: Range | None
    saves: int
    save_s: float
    disk: dict[str, int]
    price: float | None
    measured: bool = False
    assumed: list[str] = field(default_factory=list)

    @property
    def needed(self) -> int:
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        return self.needed <= self.gpu.memory_gib * GIB

    @property
    def epochs(self) -> float | None:
        images = self.config.train.steps * self.config.data.global_batch_size
        return images / self.train_images if self.train_images else None

    @property
    def hours(self) -> Range:
        """Hours of the whole run, on all GPUs together."""
        rest = self.saves * self.save_s
        found = []
        for end in (0, 1):
            validation = self.validation_s[end] * self.validations if self.validation_s else 0.0
            found.append((self.step_s[end] * self.config.train.steps + validation + rest) / 3600)
        return found[0], found[1]


def make_plan(config: Config, gpu: Gpu, *, processes: int | None = None, price: float | None = None) -> Plan:
    """Estimate a config. Raises ConfigError if the batch cannot be divided, the GPU does not have the precision, or the
    step cannot be counted."""
    gpu.check_precision(config.train.precision)
    assumed: list[str] = []
    processes = processes or config.launch.processes or 1
    if config.launch.processes is None:
        assumed.append(f"{processes} process{'es' if processes > 1 else ''} (--processes)")
    class_set, train_images, val_images = look_at_data(config, assumed)
    method = build_without_values(config, class_set)
    check_image_size(method, config.data.image_size)
    with user_error_as(ConfigError):
        images = check_share(config, method, processes)
    step, forward, sizes = count_config(config, method, class_set, images)
    memory = memory_of(config, sizes, step.kept_bytes, processes)
    largest = largest_batch(gpu, memory, images)
    floor_s = floor_of(config, gpu, step.ops, sizes["trained"])
    recorded = is_recorded(config.train, method, device="cuda", processes=processes, zero=config.launch.zero != 0)
    checkpoint = (1 + bool(config.train.ema_decay)) * sizes["weights"] + 2 * sizes["trained"]
    disk = {"checkpoints": checkpoint * (config.train.keep + (config.train.keep_best is not None))}
    return Plan(
        config=config,
        gpu=gpu,
        processes=processes,
        images=images,
        parameters=sizes["parameters"],
        flops=step.flops // images * config.data.global_batch_size,
        launches=len(step.ops),
        memory=memory,
        largest=largest,
        accumulate=least_accumulate(config, method, processes, largest),
        can_checkpoint=getattr(method.student, "checkpointing", None) is False,
        floor_s=floor_s,
        step_s=time_step(config, len(step.ops), sum(floor_s.values()), recorded=recorded),
        train_images=train_images,
        val_images=val_images,
        validations=count_validations(config),
        validation_s=time_validation(config, gpu, val_images, forward, processes),
        saves=-(-config.train.steps // config.train.save_every) if config.train.save_every else 1,
        save_s=checkpoint / DISK_BYTES_S,
        disk=disk | disk_of_data(config, class_set, train_images, val_images),
        price=price,
        assumed=[*assumed, *assumed_of(config, gpu, sizes["trained"], processes)],
    )


def assumed_of(config: Config, gpu: Gpu, trained: int, processes: int) -> list[str]:
    """The assumptions behind the estimates.

    Args:
        trained: bytes of the trained weights.
    """
    found = []
    if teacher_of(config) is not None and config.teacher is not None and not is_run(config.teacher):
        found.append(f"the teacher {config.teacher} does not exist: a ResNet-50 with PCM is assumed")
    for section, named in (("model", config.model), ("partner", config.partner)):
        found += name_absent(named, section) if named is not None else []
    if processes > 1:
        found.append(f"exchanging {trained / 1e9:.2f} GB of gradients between the processes costs nothing")
    return [
        *found,
        "an operator takes the time of its FLOPs or of its memory traffic, whichever is longer, at "
        f"{UTILISATION[1]:.0%} to {UTILISATION[0]:.0%} of the data sheet of {gpu.title}",
        "all losses on, as in the last step; loader fast enough, no other job on the GPU",
    ]


def memory_of(config: Config, sizes: dict[str, int], kept_bytes: int, processes: int) -> dict[str, int]:
    """{part: bytes} of one process; ZeRO distributes the optimizer's state and, from stage 2 on, the gradients."""
    zero = config.launch.zero if isinstance(config.launch.zero, int) else 0
    trained = sizes["trained"]
    memory = {
        "weights": sizes["weights"] + sizes["frozen"],
        "gradients": trained // (processes if zero >= 2 else 1),
        "AdamW": 2 * trained // (processes if zero >= 1 else 1),
        **({"average": sizes["weights"]} if config.train.ema_decay else {}),
        "activations": kept_bytes,
    }
    memory["workspace"] = int((WORKSPACE - 1) * sum(memory.values())) + CONTEXT_BYTES
    return memory


def largest_batch(gpu: Gpu, memory: dict[str, int], images: int) -> int:
    """How many images fit; only the activations depend on their number."""
    fixed = sum(value for name, value in memory.items() if name not in ("activations", "workspace"))
    free = (gpu.memory_gib * GIB - CONTEXT_BYTES) / WORKSPACE - fixed
    return max(0, int(free / max(memory["activations"] / images, 1)))


def least_accumulate(config: Config, method: Method, processes: int, largest: int) -> int | None:
    """The smallest number of micro-batches with which one fits and is large enough for the method to learn from."""
    for accumulate in range(1, config.data.global_batch_size // processes + 1):
        with suppress(ValueError):
            if check_share(config, method, processes, accumulate) <= largest:
                return accumulate
    return None


def floor_of(config: Config, gpu: Gpu, ops: list[tuple[int, int, str]], trained: int) -> dict[str, float]:
    """{cause: seconds} of an update whose operators all run at the peaks of the data sheet, one after another."""
    found = {"products": 0.0, "memory": 0.0, "small kernels": 0.0}
    for one in ops:
        seconds, what = gpu.least(*one, config.train.precision)
        found[what] += seconds * config.train.accumulate
    found["memory"] += 8 * trained / gpu.copy / 1e12  # AdamW and the gradient's length read and write all of it
    return found


def time_step(config: Config, launches: int, floor_s: float, *, recorded: bool) -> Range:
    """Seconds of an update. Unless it is `recorded`, the host's launches may take longer than the device."""
    host = (0.0, 0.0) if recorded else tuple(launches * config.train.accumulate * each for each in HOST_S)
    return max(floor_s / UTILISATION[0], host[0]), max(floor_s / UTILISATION[1], host[1])


def look_at_data(config: Config, assumed: list[str]) -> tuple[ClassSet, int | None, int | None]:
    """(classes, images of train, images of val): of the shards if they exist, else of the data set that their path
    names, else one class."""
    train, val = open_shards(config.data.train), open_shards(config.data.val)
    if train is not None:
        return train.index.as_class_set(), len(train), len(val) if val is not None else None
    place = str(config.data.train)
    name = next((name for name in KNOWN if name in place), None)
    classes, images, of_val = KNOWN[name] if name else (1, None, None)
    assumed.append(
        f"{place} is not here: {classes} class{'es' if classes > 1 else ''}"
        + (f", {images:,} images, as {name.upper()} has" if name and images else "; number of images not known")
    )
    return ClassSet(name="assumed", classes=tuple(f"class{n}" for n in range(classes))), images, of_val


def open_shards(place: Place | None) -> ShardFolder | None:
    """The shards, or None if they are not on this machine's disks."""
    if place is None or isinstance(place, str) or not place.is_dir():
        return None
    try:
        return ShardFolder(place)
    except DataError:
        return None


def count_validations(config: Config) -> int:
    """How often a run validates."""
    every = config.train.eval_every or max(config.train.steps, 1)
    return 0 if config.data.val is None else max(1, -(-config.train.steps // every))


def time_validation(config: Config, gpu: Gpu, val_images: int | None, flops: int, processes: int) -> Range | None:
    """Seconds of one validation; None if there is none or its number of images is not known.

    Args:
        flops: of one image in a forward pass.
    """
    if config.data.val is None or not val_images:
        return None
    images = min(val_images, config.data.val_part or val_images)
    precision = config.train.precision
    peak = gpu.peak("bf16" if precision in ("bf16", "fp16") else "float32", precision)
    whole = images * flops * look_factor(config) / peak / 1e12 / processes
    return whole / UTILISATION[0], whole / UTILISATION[1]


def look_factor(config: Config) -> float:
    """Cost of an image's maps, in forward passes at data.image_size."""
    return sum(scale**2 for scale in config.cam.scales) * (2 if config.cam.flip else 1)


def disk_of_data(
    config: Config, class_set: ClassSet, train_images: int | None, val_images: int | None
) -> dict[str, int]:
    """{what: bytes} of the shards that exist here, and of the CAMs and masks of all images."""
    found = {}
    shards = [open_shards(place) for place in (config.data.train, config.data.val)]
    here = sum(sum(shard.bytes for shard in folder.index.shards) for folder in shards if folder is not None)
    if here:
        found["shards"] = here
    images = (train_images or 0) + (val_images or 0)
    if images and METHODS[config.method.name].gives_maps:
        shown = class_set.num_fg_classes if config.cam.classes == "all" else min(3, class_set.num_fg_classes)
        found["CAMs"] = images * len(config.cam.kinds) * shown * (config.data.image_size // CAM_SIDE) ** 2 * 2
        found["masks"] = images * MASK_BYTES
    return found
