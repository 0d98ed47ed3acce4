"""The interface of all image classifiers in this package.

Shapes: B images, K foreground classes, D feature channels, h x w feature grid, H x W pixels.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from wsss.tensors import moved

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
AttentionInput = tuple[Tensor, Tensor | None]  # what an attention reads: tokens (B, N, D); rotations, of a rotary ViT


@dataclass(frozen=True)
class Outputs:
    """One forward pass.

    Attributes:
        cls_logits_BK: image-level class scores before the sigmoid.
        patches_BDhw: the last feature map (patch tokens of a ViT after its final norm; last stage of a CNN).
        class_map_BKhw: the classifier applied at every position, before any normalisation.
        further_logits: (B, K) scores of further classifiers, for networks that have several; all are trained with the
            labels.
        maps: further raw maps (B, K, h, w) by CAM kind, for networks that have maps of their own.
        seg_logits_BChw: class scores of every position with background first, for segmentation networks.
    """

    cls_logits_BK: Tensor
    patches_BDhw: Tensor
    class_map_BKhw: Tensor
    further_logits: tuple[Tensor, ...] = ()
    maps: Mapping[str, Tensor] = field(default_factory=dict)
    seg_logits_BChw: Tensor | None = None

    def detached(self) -> "Outputs":
        """The same values without their graph."""
        return Outputs(
            self.cls_logits_BK.detach(),
            self.patches_BDhw.detach(),
            self.class_map_BKhw.detach(),
            tuple(logits.detach() for logits in self.further_logits),
            {kind: raw.detach() for kind, raw in self.maps.items()},
            None if self.seg_logits_BChw is None else self.seg_logits_BChw.detach(),
        )


torch.export.register_dataclass(Outputs)  # a network can be exported as it is


class Network(nn.Module):
    """An image classifier with feature maps. Takes RGB images in [0, 1] and normalises them itself.

    Each network has its own mean and standard deviation, those of its initial weights, so that a student and a teacher
    of different origin can read the same batch.

    Args:
        feature_dim: D, the channels of `patches_BDhw`.
        stride: pixels per cell of the feature grid.
        num_classes: K.
        mean, std: of the RGB channels, for images in [0, 1].

    Raises:
        ValueError: a deviation that is not above 0.

    Attributes:
        num_classes: K, of the class map; a head may give more, or may not be a layer (see clip.TextHead).
        unread: names of parameters that no output depends on; they are frozen, see dry_run.py.
        map_names: of Outputs.maps.
        shift_px: pixels by which an image is moved to the upper left before the backbone reads it (see reach.py).
        origin: in words, which parts were loaded from another network of ours; "" if none were.
        no_graph: in words, why it cannot be exported as one graph for all image sizes; "" if no reason is known.
    """

    mean: Tensor
    std: Tensor
    unread: tuple[str, ...] = ()
    map_names: tuple[str, ...] = ()
    shift_px: int = 0
    origin: str = ""
    no_graph: str = ""

    def __init__(
        self, *, feature_dim: int, stride: int, num_classes: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        check_deviation(std)
        self.feature_dim = feature_dim
        self.stride = stride
        self.num_classes = num_classes
        self.head = nn.Conv2d(feature_dim, num_classes, kernel_size=1)  # 1x1: a classifier at every position
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.constant_(self.head.bias, 0.0)  # type: ignore[arg-type]  # there is one; torch says maybe
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def normalise(self, image: Tensor) -> Tensor:
        """RGB in [0, 1] -> what the backbone reads."""
        return moved((image - self.mean) / self.std, self.shift_px)

    def forward(self, image: Tensor) -> Outputs:
        raise NotImplementedError

    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError if images of this size cannot be used; it says which sizes can."""
        if min(height, width) < self.stride:
            raise ValueError(
                f"images of {height} x {width} px are smaller than one cell of this {type(self).__name__}; wanted "
                f"{self.stride} px or more"
            )

    def check_images(self, images: int) -> None:
        """Raise ValueError if it cannot be trained on this number of images at a time."""

    def check_begun(self) -> None:
        """Raise ValueError if a part that is not trained was not given either."""

    def grad_cam_layer(self, index: int) -> nn.Module:
        """The layer whose output Grad-CAM weighs; index as in a list of blocks or stages, -1 the last.

        Raises:
            ValueError: there is no such layer, or the network does not define this method.
        """
        raise ValueError(
            f"a {type(self).__name__} names no layers for Grad-CAM (its methods grad_cam_layer and as_map); leave grad "
            "and layer out of cam.kinds"
        )

    def as_map(self, activation: Tensor, image: Tensor) -> Tensor:
        """Output of `grad_cam_layer` -> (B, D, h, w)."""
        raise NotImplementedError

    def reading_attention(self) -> AbstractContextManager[list[AttentionInput]]:
        """A context with a list that collects, for each forward pass, the inputs of the last block's attention, for
        attention_of.

        Raises:
            ValueError: there is no attention to read.
        """
        raise ValueError(f"a {type(self).__name__} has no attention to read; choose a ViT with a class token")

    def attention_of(self, read: AttentionInput, image: Tensor) -> Tensor:
        """How much a class token attends to each position, (B, h, w) in [0, 1]."""
        raise NotImplementedError


def check_deviation(std: Sequence[float]) -> None:
    """Raise ValueError unless images can be divided by it."""
    if min(std) <= 0:
        raise ValueError(f"model.std is {tuple(std)}; wanted three values above 0, for images in [0, 1]")


def require_counts(**options: int) -> None:
    """Raise ValueError, naming the option, unless these options of the model are 1 or more."""
    for name, value in options.items():
        if value < 1:
            raise ValueError(f"model.{name} is {value}; wanted 1 or more")


def layer_at(layers: Any, index: int) -> Any:
    """A module of a list or nn.Sequential by its number. Raises ValueError if there is none of this number."""
    if not -len(layers) <= index < len(layers):
        raise ValueError(
            f"cam.layers: no layer {index}; this network has {len(layers)}, numbered from 0, or backwards from -1"
        )
    return layers[index]
