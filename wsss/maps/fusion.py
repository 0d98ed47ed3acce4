"""CAMs or segmentation logits of several scales and of the mirror image, fused into one map.

Shapes: B images, P maps per image (classes, all or packed), C = K + 1 classes with background 0, h x w grid of one
scale, H x W pixels of the fused map.

A view is the map of one kind at one scale (see scales.py). The functions here flip the map of the mirror image back.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.maps.cam import PROBABILITIES, ViewMaps, to_cam
from wsss.maps.scales import Pad, ScaledView, View, scaled_views
from wsss.tensors import at_least_float32, resize

Fold = Literal["sum", "max"]
Rule = Literal["voc", "coco"]
Fuse = Literal["mean", "toco"]
DEFAULT_PAD: dict[Fuse, Pad] = {"mean": "resize", "toco": "pad"}

NO_VIEW = "no view to fuse: wanted the maps of at least one scale"
FOLDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"sum": torch.add, "max": torch.maximum}
RULES: dict[Rule, tuple[Fold, Fold]] = {"voc": ("sum", "max"), "coco": ("max", "sum")}
"""Data set -> how the two flips, then the scales, of segmentation logits are folded in ToCo's final evaluation."""


@dataclass(frozen=True)
class CamRule:
    """How several views of an image are fused into one CAM.

    Attributes:
        scales: of the image; each gives one view.
        flip: whether the mirror image is used at every scale, too.
        fuse: `mean`: the mean of separately normalised views, see mean_of_cams; `toco`: see sum_of_relus.
        pad: how a scaled side becomes a multiple of the stride: see scaled_views.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    fuse: Fuse = "mean"
    pad: Pad = "resize"


TOCO = CamRule(scales=(1.0, 0.5, 1.5), flip=True, fuse="toco", pad="pad")
"""The rule by which ToCo and M-SEE report the mIoU of their CAMs (D-76, 1; D-77)."""


def multi_scale_cam(
    view_maps: ViewMaps, image: Tensor, *, stride: int, rule: CamRule
) -> tuple[dict[str, Tensor], Tensor]:
    """Cams of every kind, fused over the views of the rule, and class probabilities, averaged over them.

    Args:
        view_maps: image -> (raw maps, probabilities) of one view; see cam.view_maps.
        image: (B, 3, H, W) RGB in [0, 1].
        stride: pixels per cell.

    Returns:
        {kind: (B, K, h, w) in [0, 1]} on the grid of the largest scale, and (B, K) in [0, 1].
    """
    finest_first = sorted(rule.scales, reverse=True)
    views = list(scaled_views(view_maps, image, stride=stride, scales=finest_first, flip=rule.flip, pad=rule.pad))
    cams = {kind: fuse_cams([view.maps[kind] for view in views], fuse=rule.fuse, kind=kind) for kind in views[0].maps}
    if rule.pad == "pad":  # maps of padded views are as large as the view
        grid = [math.ceil(int(finest_first[0] * side) / stride) for side in image.shape[-2:]]
        cams = {
            kind: resize(cam, [min(cells, side) for cells, side in zip(grid, cam.shape[-2:], strict=True)])
            for kind, cam in cams.items()
        }
    scores = [scores_BK for view in views for scores_BK in view.scores]
    return cams, sum(scores[1:], start=scores[0]) / len(scores)


def fuse_cams(
    views: Iterable[View], size: Sequence[int] | None = None, *, fuse: Fuse = "toco", kind: str = "class_map"
) -> Tensor:
    """Class maps of several scales -> one cam per image and map, in [0, 1], float32 or better.

    Args:
        views: per scale (B, P, h, w) raw maps, any range; of the mirrored image too, where there is one. A list of
            maps of several layers is fused into one first.
        size: (H, W); None = the grid of the first view.
        fuse: see CamRule. Probabilities (kind `seg`) are averaged in any case.

    Returns:
        (B, P, H, W).

    Raises:
        ValueError: no view.
    """
    return FUSIONS["mean" if kind in PROBABILITIES else fuse](views, size, kind)


def mean_of_cams(views: Iterable[View], size: Sequence[int] | None, kind: str) -> Tensor:
    """Each view is normalised separately and resized, then all are averaged; raises ValueError without a view.

    The mean is not normalised again, so a place that is active at one scale only stays weak.

    Source: smoke paper, section 4.2 (scales 0.5, 1, 1.5, 2); D-09.
    """
    total, number = None, 0
    for view in views:
        for mirrored, raw in enumerate(view):
            cam = to_cam(kind, raw)
            size = cam.shape[-2:] if size is None else size
            cam = resize(cam.flip(-1) if mirrored else cam, size)
            total = cam if total is None else total + cam
            number += 1
    if total is None:
        raise ValueError(NO_VIEW)
    return total / number


def sum_of_relus(views: Iterable[View], size: Sequence[int] | None, kind: str) -> Tensor:
    """Raw maps rectified and summed over scales, and normalised once.

        s = sum over scales of relu(max(up(map), flip(up(map of the mirror))))
        cam = (s - min_HW s) / (max_HW (s - min_HW s) + 1e-5)

    A map that is nowhere positive, and a padded channel (all 0), give exactly 0.

    Source: ToCo, multi-scale CAM (D-76, 1; golden msccam).
    """
    one_map = (tuple(to_cam(kind, raw) if isinstance(raw, list) else raw for raw in view) for view in views)
    total = fold_views(one_map, size, flips="max", scales="sum", activation=F.relu)
    total = total - total.amin(dim=(-2, -1), keepdim=True)
    return total / (total.amax(dim=(-2, -1), keepdim=True) + 1e-5)


FUSIONS: dict[Fuse, Callable[[Iterable[View], Sequence[int] | None, str], Tensor]] = {
    "mean": mean_of_cams,
    "toco": sum_of_relus,
}


def fold_views(
    views: Iterable[tuple[Tensor, ...]],
    size: Sequence[int] | None,
    *,
    flips: Fold,
    scales: Fold,
    activation: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Segmentation logits or raw maps of several scales -> one (B, C, H, W), float32 or better.

    Args:
        views: per scale (B, C, h, w); of the mirrored image too, where there is one.
        size: (H, W); None = the grid of the first view.
        flips, scales: how the two flips of a scale, and then the scales, are combined: RULES has the rules of VOC and
            COCO.
        activation: of the combined flips of a scale.

    Raises:
        ValueError: no view.

    Source: ToCo, final VOC and COCO evaluation (D-77).
    """
    total: Tensor | None = None
    for view in views:
        size = view[0].shape[-2:] if size is None else size
        scale = resize(at_least_float32(view[0]), size)
        for mirrored in view[1:]:
            scale = FOLDS[flips](scale, resize(at_least_float32(mirrored), size).flip(-1))
        scale = scale if activation is None else activation(scale)
        total = scale if total is None else FOLDS[scales](total, scale)
    if total is None:
        raise ValueError(NO_VIEW)
    return total


def cams_of_present(
    views: Sequence[ScaledView], kinds: Sequence[str], present_BP: Tensor, size: Sequence[int], fuse: Fuse
) -> dict[str, Tensor]:
    """{kind: CAM (B, P, *size)} of the classes that each image shows, for those of `kinds` that the views have."""
    return {
        kind: fuse_cams([pack_view(view.maps[kind], present_BP) for view in views], size, fuse=fuse)
        for kind in kinds
        if kind in views[0].maps
    }


def pack_view(view: View, present_BP: Tensor) -> View:
    """A view with only the classes that each image shows; see packed."""
    return tuple(
        [packed(layer, present_BP) for layer in raw] if isinstance(raw, list) else packed(raw, present_BP)
        for raw in view
    )


def packed(maps_BKhw: Tensor, present_BP: Tensor) -> Tensor:
    """The maps of the present classes (B, P, h, w); padded channels are 0."""
    chosen = present_BP.clamp(min=0)[..., None, None].expand(-1, -1, *maps_BKhw.shape[-2:])
    return maps_BKhw.gather(1, chosen) * (present_BP >= 0)[..., None, None]
