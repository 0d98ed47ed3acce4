"""Image labels of all images and masks of a few: the smoke paper's baseline with limited pixel labels."""

from collections.abc import Hashable
from typing import ClassVar, Literal

import torch
from torch import Tensor

from wsss.losses.labels import count_labelled, segmentation_loss
from wsss.methods.base import Batch, Method, image_label_loss
from wsss.models.base import Network


class Mixed(Method):
    """L = L_cls(images with labels) + pixel_weight * (L_cls + L_pixel)(images with masks)

    L_pixel is the cross-entropy of [0, class map] against the mask: the classifier is trained to predict the class of
    every patch, so the masks train the network through its CAM. The published attempt cut the gradient there (D-42),
    which is why it failed.

    CAM kinds: `class_map`, `grad`, `layer`.

    Raises:
        ValueError: pixel_weight is negative.

    Source: smoke paper, Table 4.1, "image + limited pixel labels".
    """

    supervision: ClassVar[Literal["label", "mask", "mixed"]] = "mixed"

    def __init__(self, student: Network, *, pixel_weight: float = 1.0) -> None:
        super().__init__()
        if pixel_weight < 0:
            raise ValueError(f"method.pixel_weight is {pixel_weight}; wanted >= 0")
        self.student = student
        self.pixel_weight = pixel_weight

    def phase(self, step: int) -> Hashable:
        return None

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        pixel = batch["pixel"]
        cls_loss = image_label_loss(self.student(batch["image"]), batch["image_label"])
        out = self.student(pixel["image"])
        pixel_cls_loss = image_label_loss(out, pixel["image_label"])
        totals, shares = batch.get("totals", {}), batch.get("shares", 1)
        class_map_BChw = with_zero_background(out.class_map_BKhw)
        pixel_loss = segmentation_loss(class_map_BChw, pixel["mask"], labelled=totals.get("labelled"), shares=shares)
        total = cls_loss + self.pixel_weight * (pixel_cls_loss + pixel_loss)
        return {"loss": total, "cls_loss": cls_loss, "pixel_cls_loss": pixel_cls_loss, "pixel_loss": pixel_loss}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"labelled": count_labelled(batch["pixel"]["mask"])}


def with_zero_background(class_map_BKhw: Tensor) -> Tensor:
    """Class scores preceded by a background with score 0; for one class the softmax is then the sigmoid of its
    score."""
    return torch.cat([torch.zeros_like(class_map_BKhw[:, :1]), class_map_BKhw], dim=1)
