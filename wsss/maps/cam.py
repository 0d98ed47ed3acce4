"""Class activation maps (CAMs): where a classifier sees a class.

Shapes: B images, K classes, D channels, L layers, h x w feature grid, H x W pixels.
A raw map has any range; a `cam` is in [0, 1].
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.maps.gradients import GRADIENT_KINDS, gradient_maps
from wsss.tensors import at_least_float32, full_precision, resize

if TYPE_CHECKING:  # what reads or counts maps needs no networks, whose import takes seconds
    from wsss.models.base import Network, Outputs

Raw = Tensor | list[Tensor]  # a raw map (B, K, h, w); one per layer where several layers are read
ViewMaps = Callable[[Tensor], tuple[Mapping[str, Raw], Tensor]]  # image -> ({kind: raw map}, class probabilities)

ATTENTION = "attention"
"""The kind that is one map for all classes: what the class token attends to in the last block, without a gradient."""
BESIDE = (*GRADIENT_KINDS, ATTENTION)  # kinds that are read beside a forward pass, and are none of its outputs
PROBABILITIES = {"seg"}  # kinds that are probabilities already and are not normalised


def normalise_cam(raw_BKhw: Tensor) -> Tensor:
    """Raw map -> cam in [0, 1]: ReLU, then min-max over the positions of each image and class.

        x = relu(raw),   x <- x - min x,   cam = x / (max x + 1e-7)

    A map that is nowhere positive gives all zeros.

    Source: smoke paper's code (D-79).
    """
    x = F.relu(raw_BKhw.float())
    x = x - x.amin(dim=(-2, -1), keepdim=True)
    return x / (x.amax(dim=(-2, -1), keepdim=True) + 1e-7)


def maps_of_present(features_BDhw: Tensor, weight_BPD: Tensor) -> Tensor:
    """Raw maps of the classes that an image shows, and of no other.

    Args:
        weight_BPD: of packed_rows.

    Returns:
        (B, P, h, w) float32 or better; padded channels are 0.
    """
    with full_precision(features_BDhw):  # what thresholds read keeps its digits
        return torch.einsum("bpd,bdhw->bphw", at_least_float32(weight_BPD), at_least_float32(features_BDhw))


def packed_rows(weight_KD: Tensor, present_BP: Tensor) -> Tensor:
    """The weight rows of a classifier for the classes that each image shows; the classifier has no bias.

    Args:
        weight_KD: all rows.
        present_BP: channels 0..K-1 of the classes of each image, padded with -1.

    Returns:
        (B, P, D); rows of 0 for padding.
    """
    return weight_KD[present_BP.clamp(min=0)] * (present_BP >= 0).unsqueeze(-1)


def fuse_layers(raw_of_layers: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Raw maps of several layers -> one CAM: each is normalised and resized; their mean is normalised again.

    Args:
        raw_of_layers: L maps (B, K, h, w), whose grids may differ.
        size: (h, w) of the fused cam.

    Returns:
        (B, K, *size) in [0, 1].

    Source: smoke paper, section 4.2 and Table 4.5 (CAM fusion); D-27.
    """
    return normalise_cam(torch.stack([resize(normalise_cam(raw), size) for raw in raw_of_layers]).mean(dim=0))


def view_maps(
    network: "Network",
    maps_of: Callable[["Outputs"], Mapping[str, Tensor]],
    image: Tensor,
    kinds: Sequence[str],
    layers: Sequence[int] = (-1,),
) -> tuple[dict[str, Raw], Tensor]:
    """Raw maps of all kinds and the class probabilities of one view, from a single forward pass.

    Args:
        maps_of: Outputs -> {kind: raw map}, see Method.maps_of; the kinds in BESIDE come from gradients or attention
            instead.
        layers: of the gradient kinds.

    Returns:
        {kind: (B, K, h, w), or one such map per layer} and (B, K) in [0, 1].

    Raises:
        ValueError: a kind that this method does not have (lists those that it has), or attention of a network without
            it.
    """
    maps: dict[str, Raw] = {}
    by_gradient = [kind for kind in kinds if kind in GRADIENT_KINDS]
    with network.reading_attention() if ATTENTION in kinds else nullcontext([]) as seen:
        if by_gradient:
            of_kinds, out = gradient_maps(network, image, by_gradient, layers)
            maps.update(of_kinds)
        else:
            with torch.no_grad():
                out = network(image)
    with torch.no_grad():
        maps.update(maps_of(out))
        if seen:
            attention_B1hw = network.attention_of(seen[-1], image)[:, None]
            maps[ATTENTION] = attention_B1hw.expand(-1, out.cls_logits_BK.shape[1], -1, -1)
    unknown = [kind for kind in kinds if kind not in maps]
    if unknown:
        known = sorted({*GRADIENT_KINDS, *maps, *([ATTENTION] if has_attention(network) else [])})
        raise ValueError(f"cam.kinds: {unknown} are not among the kinds of this method, {known}")
    return {kind: maps[kind] for kind in kinds}, out.cls_logits_BK.float().sigmoid()


def has_attention(network: "Network") -> bool:
    """Whether the attention of this network can be read."""
    try:
        with network.reading_attention():
            return True
    except ValueError:
        return False


def to_cam(kind: str, raw: Raw) -> Tensor:
    """Raw map of one view -> cam in [0, 1] on its grid (the finest, of several layers)."""
    if isinstance(raw, list):
        size = max((tuple(of_layer.shape[-2:]) for of_layer in raw), key=lambda hw: hw[0] * hw[1])
        return fuse_layers(raw, size) if len(raw) > 1 else normalise_cam(raw[0])
    return raw.float() if kind in PROBABILITIES else normalise_cam(raw)
