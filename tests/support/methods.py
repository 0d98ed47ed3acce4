"""Every method of the registry at toy size, for tests that any new method passes by being listed here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from support.networks import (
    tiny_affinity_net,
    tiny_cnn,
    tiny_frozen,
    tiny_segmenter,
    tiny_toco,
    tiny_vit,
    two_view_batch,
)
from support.toys import SMALL
from torch import nn

from shards.batches.batch import present_classes
from wsss.methods import METHODS
from wsss.methods.base import Frozen, Method


def batch_of(images: int = 4, classes: int = 1) -> dict[str, Any]:
    """A random batch with all that methods of one view ask for: every image shows one class or none."""
    label = (torch.arange(images)[:, None] % (classes + 1) == torch.arange(classes)).float()
    mask = torch.randint(0, classes + 1, (images, 32, 32), dtype=torch.uint8)
    mask[:, :4] = 255
    batch = {"image": torch.rand(images, 3, 32, 32), "image_label": label, "mask": mask}
    return {**batch, "pixel": {name: value[:2] for name, value in batch.items()}}


def two_views_of(images: int = 4, classes: int = 1) -> dict[str, Any]:
    return two_view_batch(classes, images)


def batch_with_present(images: int = 4, classes: int = 1) -> dict[str, Any]:
    batch = batch_of(images, classes)
    box = torch.tensor([[0, 32, 0, 32]] * images)
    return {**batch, "present": present_classes(batch["image_label"]), "box": box}


@dataclass(frozen=True)
class Toy:
    """How a method is built and judged at toy size.

    Attributes:
        weights: {name: factor of NAME_loss in "loss"}: the sum that the method's docstring states.
        student: number of classes -> the network that the method trains.
        options: of the method.
        batch: (images, classes) -> a batch.
        steps: {phase: a step in it}.
    """

    weights: Mapping[str, float]
    student: Callable[[int], nn.Module] = tiny_vit
    options: Mapping[str, Any] = field(default_factory=dict)
    batch: Callable[[int, int], dict[str, Any]] = batch_of
    steps: Mapping[str, int] = field(default_factory=lambda: {"first": 0, "second": 1})


PHASES = {"cls alone": 0, "contrast": 5, "segmentation with auxiliary labels": 10, "all": 15}
PHASED = {**SMALL, "contrast_from": 5, "seg_from": 10, "aux_labels_before": 15}
TOCO = {"cls": 1.0, "cls_aux": 1.0, "ptc": 0.2, "ctc": 0.5, "seg": 0.1, "energy": 0.05}

TOYS = {
    "classify": Toy({"cls": 1.0, "dark": 0.3}, options={"dark_weight": 0.3}),
    "distill": Toy(
        {"cls": 1.0, "align": 0.7, "time": 0.5}, options={"align_weight": 0.7, "time_weight": 0.5, "still": 0.4}
    ),
    "cotrain": Toy({"cls": 1.0, "partner": 1.0, "align": 0.5}, options={"align_weight": 0.5, "gradient": "alternate"}),
    "mixed": Toy({"cls": 1.0, "pixel_cls": 0.2, "pixel": 0.2}, options={"pixel_weight": 0.2}),
    "supervised": Toy({"seg": 1.0}, tiny_segmenter),
    "affinity": Toy({"bg": 0.25, "fg": 0.25, "neg": 0.5}, tiny_affinity_net, {"radius": 2}),
    "toco": Toy(TOCO, tiny_toco, PHASED, two_views_of, PHASES),
    "frozen": Toy(
        {"cls": 1.0, "seg": 0.5, "pair": 0.1},
        tiny_frozen,
        {"seg_weight": 0.5, "seg_from": 5, "agree_from": 10, "attended": 2, "par_iterations": 2, "group_size": 2},
        batch_with_present,
        {"cls alone": 0, "all layers": 5, "agreeing layers": 10},
    ),
    "msee": Toy({**TOCO, "msee": 1.0}, tiny_toco, PHASED, two_views_of, {**PHASES, "msee": 20}),
}


def build(name: str, classes: int = 1, teacher: Callable[[int], Any] = tiny_cnn, **options: Any) -> Method:
    """A method with tiny networks and these options alone."""
    method = METHODS[name]
    others: list[Any] = [Frozen(teacher(classes))] if method.needs_teacher else []
    others += [teacher(classes)] if method.needs_partner else []
    return method(TOYS[name].student(classes), *others, **options)
