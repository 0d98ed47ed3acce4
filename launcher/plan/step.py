"""One step of a config without data, weights, a teacher's run or a device: the real method, tensors without values."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from launcher.bench.count import Counted, count_step, storage_ids
from launcher.bench.stage import Stage
from launcher.config.options import Named, options_of
from launcher.config.whole import Config
from launcher.errors import ConfigError, user_error_as
from launcher.processes.precision import in_precision
from launcher.run.build import build_network, drop_weights
from launcher.run.folder import Run, is_run
from shards.schema import ClassSet
from wsss.methods import METHODS
from wsss.methods.base import Frozen, Method
from wsss.models.dry_run import tensors_of

NO_TEACHER = Named.model_validate(
    {"name": "pcm", "timm_name": "resnet50"}
)  # in place of a teacher that does not exist yet


def teacher_of(config: Config) -> Named | None:
    """The network of the teacher, or NO_TEACHER if it is not trained yet; None without a teacher."""
    if config.teacher is None:
        return None
    return Run(config.teacher).config.model if is_run(config.teacher) else NO_TEACHER


def build_untrained(config: Config, class_set: ClassSet) -> Method:
    """The method with random weights; a teacher that does not exist yet is replaced by NO_TEACHER.

    Raises:
        ConfigError: no such network, or options that do not fit.
    """
    collaborators: list[Any] = []
    if METHODS[config.method.name].needs_teacher and (teacher := teacher_of(config)) is not None:
        collaborators.append(Frozen(build_network(drop_weights(teacher), class_set)))
    if config.partner is not None:
        collaborators.append(build_network(drop_weights(config.partner), class_set, "partner"))
    student = build_network(drop_weights(config.model), class_set)
    with user_error_as(ConfigError):
        return METHODS[config.method.name](student, *collaborators, **options_of(config.method, METHODS)).train()


def build_without_values(config: Config, class_set: ClassSet) -> Method:
    """The same without memory for its weights, unless a network reads values while it is built."""
    try:
        with torch.device("meta"):
            return build_untrained(config, class_set)
    except NotImplementedError:  # raised by torch when a value of such a tensor is read
        return build_untrained(config, class_set)


def frozen_of(method: Method) -> Iterator[torch.nn.Module]:
    """Networks that a method uses but does not train."""
    return (value.network for value in vars(method).values() if isinstance(value, Frozen))


def make_batch(config: Config, method: Method, images: int, classes: int, stage: Stage) -> dict[str, Any]:
    """Random images in the form of the loader's batches; every image shows the first class."""
    px = config.data.image_size
    label = torch.zeros(images, classes)
    label[:, 0] = 1
    box = torch.tensor([[0, px, 0, px]]).repeat(images, 1)
    batch: dict[str, Any] = {"image": stage.photographs(images, px), "image_label": label, "box": box}
    batch |= {"key": ["a"] * images, "present": torch.zeros(images, 1, dtype=torch.int64)}
    if method.views == "two":
        batch |= stage.second_view(images, px)
    if method.supervision == "mask":
        batch["mask"] = torch.zeros(images, px, px, dtype=torch.uint8)
    if method.supervision == "mixed":
        few = max(1, images * config.data.pixel_batch_size // config.data.global_batch_size)
        part = {name: value[:few] for name, value in batch.items()}
        batch["pixel"] = {**part, "mask": torch.zeros(few, px, px, dtype=torch.uint8)}
    return batch


def count_config(
    config: Config, method: Method, class_set: ClassSet, images: int
) -> tuple[Counted, int, dict[str, int]]:
    """Count the last step of a run, when all losses are on, and one forward pass of the student.

    Args:
        method: from build_without_values; its tensors lose their values.
        images: of one process and micro-batch.

    Returns:
        the counts of the step; FLOPs of a forward pass of one image; {`parameters`: their number; bytes that are always
        in memory: `weights`, `trained` of them, and `frozen` of networks that are not trained}.

    Raises:
        ConfigError: the method's step depends on values, so it cannot be counted.
    """
    method.as_on_gpus()
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in (method, *frozen_of(method)):
            module.to_empty(device="cpu")
        batch = make_batch(config, method, images, class_set.num_fg_classes, Stage(torch.device("cpu")))
        there = [*method.parameters(), *method.buffers()]
        frozen = [tensor for network in frozen_of(method) for tensor in (*network.parameters(), *network.buffers())]

        def loss() -> Tensor:
            with in_precision(config.train.precision, "cpu"):
                losses: dict[str, Tensor] = method(batch, max(config.train.steps - 1, 0))
                return losses["loss"]

        def look() -> Tensor:
            return tensors_of(method.student.eval()(batch["image"][:1]))[0]

        try:
            step = count_step(loss, storage_ids([*there, *frozen]))
            forward = count_step(look, storage_ids(there), backward=False).flops
        except (RuntimeError, NotImplementedError) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(
                f"method '{config.method.name}': its step cannot be counted without values ({first})"
            ) from error
    sizes = {
        "parameters": sum(p.numel() for p in method.parameters()),
        "weights": size_of(there),
        "trained": size_of(p for p in method.parameters() if p.requires_grad),
        "frozen": size_of(frozen),
    }
    return step, forward, sizes


def size_of(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
