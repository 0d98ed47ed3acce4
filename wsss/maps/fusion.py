"""Several scales and the mirror image, fused into one map: of CAMs and of segmentation logits.

Shapes: B images, P maps per image (classes, all or packed), C = K + 1 classes with background 0, h x w grid of one
scale, H x W pixels of the fused map.

A view is what one scale gives: (logits,) or (logits, logits of the mirrored image), each at its own grid. The fusions
turn the second one round themselves.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.tensors import at_least_float32, resize

View = tuple[Tensor, ...]
Fold = Literal["sum", "max"]
Rule = Literal["voc", "coco"]

FOLDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"sum": torch.add, "max": torch.maximum}
"""Rule -> how the two flips and how the scales are folded in ToCo's final evaluation."""
RULES: dict[Rule, tuple[Fold, Fold]] = {"voc": ("sum", "max"), "coco": ("max", "sum")}


def fuse_cams(views: Iterable[View], size: Sequence[int]) -> Tensor:
    """Raw class maps of several scales -> one cam per image and map, in [0, 1].

        s = sum over scales of relu(max(up(logits), flip(up(logits of the mirror))))
        cam = (s - min_HW s) / (max_HW (s - min_HW s) + 1e-5)

    A map that is nowhere positive, and a padded channel (all 0), give exactly 0.

    Args:
        views: per scale (B, P, h, w) logits, any range; of the mirrored image too, where there is one.
        size: (H, W).

    Returns:
        (B, P, H, W), float32 or better.

    Raises:
        ValueError: no view.

    Source: ToCo, multi-scale CAM (D-76, 1; golden msccam).
    """
    total = fold_views(views, size, flips="max", scales="sum", activation=F.relu)
    total = total - total.amin(dim=(-2, -1), keepdim=True)
    return total / (total.amax(dim=(-2, -1), keepdim=True) + 1e-5)


def fuse_seg_logits(views: Iterable[View], size: Sequence[int], *, flips: Fold, scales: Fold) -> Tensor:
    """Segmentation logits of several scales -> one (B, C, H, W), float32 or better.

    Args:
        views: per scale (B, C, h, w) logits; of the mirrored image too, where there is one.
        size: (H, W).
        flips, scales: how the two flips of a scale, then the scales, are folded: RULES has those of VOC and COCO.

    Raises:
        ValueError: no view.

    Source: ToCo, final VOC and COCO evaluation (D-77).
    """
    return fold_views(views, size, flips=flips, scales=scales)


def fold_views(
    views: Iterable[View],
    size: Sequence[int],
    *,
    flips: Fold,
    scales: Fold,
    activation: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Every view brought to `size`, its flips folded, then the scales; one view is in memory at a time."""
    total: Tensor | None = None
    for view in views:
        scale = resize(at_least_float32(view[0]), size)
        for mirrored in view[1:]:
            scale = FOLDS[flips](scale, resize(at_least_float32(mirrored), size).flip(-1))
        scale = scale if activation is None else activation(scale)
        total = scale if total is None else FOLDS[scales](total, scale)
    if total is None:
        raise ValueError("no view to fuse: wanted the maps of at least one scale")
    return total


def scaled_views(
    maps_of: Callable[[Tensor], Mapping[str, Tensor]],
    image: Tensor,
    *,
    stride: int,
    scales: Sequence[float] = (1.0,),
    flip: bool = True,
) -> Iterator[dict[str, View]]:
    """The maps of every scale of an image, one scale after the other: {name: view}.

    A scale is the image resized to (int(s H), int(s W)); it and its mirror image go through the network as one batch.
    A side that is no multiple of the stride is not floored: see `padded_maps`.

    Args:
        maps_of: (B', 3, H', W') with sides that are multiples of the stride -> {name: (B', P, h, w)}.
        image: (B, 3, H, W) RGB in [0, 1].
        stride: pixels per patch.

    Raises:
        ValueError: a scale that leaves nothing of a side.
    """
    height, width = image.shape[-2:]
    for scale in scales:
        size = (int(scale * height), int(scale * width))
        if min(size) < 1:
            raise ValueError(f"scale {scale:g} of an image of {height} x {width} pixels is empty; use larger scales")
        view = resize(image, size)
        both = torch.cat([view, view.flip(-1)]) if flip else view
        maps = padded_maps(maps_of, both, stride)
        yield {name: of_both.chunk(2) if flip else (of_both,) for name, of_both in maps.items()}


def padded_maps(maps_of: Callable[[Tensor], Mapping[str, Tensor]], image: Tensor, stride: int) -> dict[str, Tensor]:
    """Maps of images of any size. Sides that are multiples of the stride: the maps as they come, on their grid.

    Otherwise the image is padded at the bottom and the right by repeating its last row and column up to the next
    multiple (at most stride - 1 px, so that no black edge is seen and ImageNet statistics hold), the maps are brought
    to the padded size and cut to (H, W).
    """
    height, width = image.shape[-2:]
    below, right = -height % stride, -width % stride
    if not below and not right:
        return dict(maps_of(image))
    maps = maps_of(F.pad(image, (0, right, 0, below), mode="replicate"))
    padded = (height + below, width + right)
    return {name: resize(raw, padded)[..., :height, :width] for name, raw in maps.items()}


def packed(maps_BKhw: Tensor, present_BP: Tensor) -> Tensor:
    """The maps of the present classes (B, P, h, w); padded channels are 0."""
    chosen = present_BP.clamp(min=0)[..., None, None].expand(-1, -1, *maps_BKhw.shape[-2:])
    return maps_BKhw.gather(1, chosen) * (present_BP >= 0)[..., None, None]
