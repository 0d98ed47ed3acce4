"""Maps of an image at several scales, and of its mirror image.

Shapes: B images, K classes, h x w grid of one scale, H x W pixels.

A view holds the maps of one kind at one scale: (map,) or (map, map of the mirror image), each on its own grid."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.maps.cam import Raw, ViewMaps
from wsss.tensors import resize

View = tuple[Raw, ...]
Pad = Literal["resize", "pad", "floor"]

LARGEST = 8.0  # scale of a network's view (D-180)


class ScaledView(NamedTuple):
    """One scale of a batch: {kind: view}, and the class scores (B, K) of the image and of its mirror image."""

    maps: dict[str, View]
    scores: tuple[Tensor, ...]

    def at_one_layer(self, kind: str) -> tuple[Tensor, ...]:
        """The view of a kind that has a single layer; only gradient kinds have several."""
        return cast(tuple[Tensor, ...], self.maps[kind])


def scaled_views(
    view_maps: ViewMaps,
    image: Tensor,
    *,
    stride: int,
    scales: Sequence[float] = (1.0,),
    flip: bool = True,
    pad: Pad = "pad",
) -> Iterator[ScaledView]:
    """The maps of every scale of an image, one scale after the other.

    A scale and its mirror image go through the network as one batch. How a side becomes a multiple of the stride:

        resize    the image is resized to the nearest multiple
        pad       it is resized to int(scale * side), at least 1, and padded: see map_padded
        floor     it is resized to int(scale * side), at least one multiple, and what is behind the last multiple is
                  cut off; the map is then read as that of the whole image, as ToCo publishes it

    Args:
        view_maps: (B', 3, H', W') with sides that are multiples of the stride -> ({kind: (B', P, h, w)}, (B', K)).
        image: (B, 3, H, W) RGB in [0, 1].
        stride: pixels per patch.
    """
    for scale in scales:
        view = scale_image(image, scale, stride, pad)
        both = torch.cat([view, view.flip(-1)]) if flip else view
        maps, scores = map_padded(view_maps, both, stride)
        ways = 1 + flip
        yield ScaledView(
            {kind: tuple(take_part(raw, way, ways) for way in range(ways)) for kind, raw in maps.items()},
            scores.chunk(ways),
        )


def scale_image(image: Tensor, scale: float, stride: int, pad: Pad) -> Tensor:
    """Resize images (B, 3, H, W) to one scale by the rule `pad`; padding itself is done elsewhere."""
    height, width = image.shape[-2:]
    if pad == "resize":
        return resize(image, [max(round(side * scale / stride), 1) * stride for side in (height, width)])
    least = stride if pad == "floor" else 1
    size = (max(int(scale * height), least), max(int(scale * width), least))
    view = resize(image, size)
    return view[..., : size[0] // stride * stride, : size[1] // stride * stride] if pad == "floor" else view


def check_scales(option: str, scales: Sequence[float], side: int, stride: int) -> None:
    """Raise ValueError unless images of this side have at least one whole patch at each scale, and no scale exceeds
    LARGEST.

    Args:
        option: the config key of the scales.
        stride: pixels per patch.
    """
    for scale in scales:
        if scale > LARGEST:
            raise ValueError(f"{option} has {scale:g}; wanted at most {LARGEST:g} times the sides of an image")
        if not scale > 0 or max(int(scale * side), 1) < stride:
            raise ValueError(
                f"{option} has {scale:g}, at which images of {side} px shrink to {max(int(scale * side), 0)} px, less "
                f"than one patch of {stride} px; wanted {stride / side:.2g} or more, or a larger data.image_size"
            )


def take_part(raw: Raw, way: int, ways: int) -> Raw:
    """The part of one of `ways` views that went through the network as one batch."""
    return [layer.chunk(ways)[way] for layer in raw] if isinstance(raw, list) else raw.chunk(ways)[way]


def map_padded(view_maps: ViewMaps, image: Tensor, stride: int) -> tuple[Mapping[str, Raw], Tensor]:
    """Map images of any size; also gives their class scores.

    If the sides are multiples of the stride, the maps stay on their own grid. Otherwise the image is padded at the
    bottom and the right by repeating its last row and column up to the next multiple (at most stride - 1 px, so that no
    black edge is seen and ImageNet statistics hold), the maps are brought to the padded size and cut to (H, W)."""
    height, width = image.shape[-2:]
    below, right = -height % stride, -width % stride
    if not below and not right:
        return view_maps(image)
    maps, scores = view_maps(F.pad(image, (0, right, 0, below), mode="replicate"))

    def cut(raw: Tensor) -> Tensor:
        return resize(raw, (height + below, width + right))[..., :height, :width]

    return {kind: [cut(x) for x in raw] if isinstance(raw, list) else cut(raw) for kind, raw in maps.items()}, scores
