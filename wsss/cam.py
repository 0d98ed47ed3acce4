"""Class activation maps: where a classifier sees a class.

Shapes: B images, K classes, D channels, L layers, h x w feature grid, H x W pixels.
A raw map has any range; a `cam` is in [0, 1].
"""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.align import at_least_float32, full_precision
from wsss.models.base import Network, Outputs
from wsss.resize import resize

Raw = Tensor | list[Tensor]  # a raw map (B, K, h, w); one per layer where several layers are read
ViewMaps = Callable[[Tensor], tuple[dict[str, Raw], Tensor]]  # image -> ({kind: raw map}, class probabilities)

PROBABILITIES = {"seg"}  # kinds that are probabilities already and are not normalised


def normalise_cam(raw_BKhw: Tensor) -> Tensor:
    """Raw map -> cam in [0, 1]: ReLU, then min-max over the positions of each image and class.

        x = relu(raw),   x <- x - min x,   cam = x / (max x + 1e-7)

    A map that is nowhere positive gives all zeros.

    Source: [C] of the smoke paper's code; see spec, 2.4 and C4.
    """
    x = F.relu(raw_BKhw.float())
    x = x - x.amin(dim=(-2, -1), keepdim=True)
    return x / (x.amax(dim=(-2, -1), keepdim=True) + 1e-7)


def maps_of_present(features_BDhw: Tensor, weight_KD: Tensor, present_BP: Tensor) -> Tensor:
    """Raw maps of the classes that an image shows, and of no other.

    Args:
        weight_KD: of a classifier without bias.
        present_BP: channels 0..K-1 of the classes of each image, padded with -1.

    Returns:
        (B, P, h, w) float32 or better; padded channels are 0.
    """
    weight_BPD = packed_rows(weight_KD, present_BP)
    with full_precision(features_BDhw):  # what thresholds read keeps its digits
        return torch.einsum("bpd,bdhw->bphw", at_least_float32(weight_BPD), at_least_float32(features_BDhw))


def packed_rows(weight_KD: Tensor, present_BP: Tensor) -> Tensor:
    """A classifier's rows (B, P, D) of the classes that each image shows; rows of 0 for padding (-1)."""
    return weight_KD[present_BP.clamp(min=0)] * (present_BP >= 0).unsqueeze(-1)


def gradient_maps(
    network: Network, image: Tensor, kinds: Sequence[str] = ("grad",), layers: Sequence[int] = (-1,)
) -> tuple[dict[str, list[Tensor]], Outputs]:
    """Raw maps of the gradient kinds of every class at each of the layers, and the forward pass they came from.

    With A the output of a layer (without prefix tokens for a ViT) and g = d logit_k / d A, a kind is a function of
    the two; see GRADIENT_KINDS. One forward pass, one backward pass per class, and no gradient below the first of
    the layers.

    Args:
        image: (B, 3, H, W) RGB in [0, 1].
        layers: block numbers as in a list; -1 is the last.

    Returns:
        {kind: L maps (B, K, h, w)} and the Outputs, all detached.
    """
    modules = [network.grad_cam_layer(index) for index in layers]
    found: dict[int, Tensor] = {}

    def keep(position: int) -> Callable:
        def hook(module: torch.nn.Module, inputs: tuple, output: Tensor) -> Tensor:
            # The first of the layers that runs is where the graph begins: what lies below it is not recorded.
            torch.set_grad_enabled(True)
            found[position] = output if found else output.detach().requires_grad_()
            return found[position]

        return hook

    handles = [module.register_forward_hook(keep(position)) for position, module in enumerate(modules)]
    try:
        with torch.no_grad():  # until the first hook; leaving the block restores the mode
            out = network(image)
    finally:
        for handle in handles:
            handle.remove()
    activations = [found[position] for position in range(len(modules))]
    of_class: list[list[tuple[Tensor, Tensor]]] = []  # [class][layer]: activation and gradient as maps
    for class_index in range(out.cls_logits_BK.shape[1]):
        # Images do not influence each other in eval mode, so the backward pass of the sum serves the whole batch.
        # A batched backward pass (vmap) over the classes was measured slower on a CPU and needs K times the memory.
        gradients = torch.autograd.grad(out.cls_logits_BK[:, class_index].sum(), activations, retain_graph=True)
        pairs = zip(activations, gradients, strict=True)
        of_class.append([(network.as_map(a.float(), image), network.as_map(g.float(), image)) for a, g in pairs])
    maps = {
        kind: [
            torch.stack([GRADIENT_KINDS[kind](*of_layer[position]) for of_layer in of_class], dim=1).detach()
            for position in range(len(modules))
        ]
        for kind in kinds
    }
    return maps, out.detached()


def grad_cam(activation_BDhw: Tensor, gradient_BDhw: Tensor) -> Tensor:
    """Channels weighed by their mean gradient: sum_c mean_hw(g_c) A_c, (..., D, h, w) -> (..., h, w).

    Source: Selvaraju et al. 2017 (Eq. 1-2, without the ReLU); the smoke paper reads it at blocks[-1].norm1.
    """
    alpha_BD11 = gradient_BDhw.mean(dim=(-2, -1), keepdim=True)
    return (alpha_BD11 * activation_BDhw).sum(dim=-3)


def layer_cam(activation_BDhw: Tensor, gradient_BDhw: Tensor) -> Tensor:
    """Each position weighed by its own positive gradient: sum_c relu(g_c) A_c, (..., D, h, w) -> (..., h, w).

    Source: Jiang et al. 2021 (LayerCAM, Eq. 5-6, without the outer ReLU).
    """
    return (F.relu(gradient_BDhw) * activation_BDhw).sum(dim=-3)


GRADIENT_KINDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"grad": grad_cam, "layer": layer_cam}


def fuse_layers(raw_of_layers: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Raw maps of several layers -> one cam: each normalised and resized, averaged, and normalised again.

    Args:
        raw_of_layers: L maps (B, K, h, w), whose grids may differ.
        size: (h, w) of the fused cam.

    Returns:
        (B, K, *size) in [0, 1].

    Source: smoke paper, section 4.2 and Table 4.5 (CAM fusion); spec C7.
    """
    return normalise_cam(torch.stack([resize(normalise_cam(raw), size) for raw in raw_of_layers]).mean(dim=0))


def view_maps(
    network: Network,
    maps_of: Callable[[Outputs], Mapping[str, Tensor]],
    image: Tensor,
    kinds: Sequence[str],
    layers: Sequence[int] = (-1,),
) -> tuple[dict[str, Raw], Tensor]:
    """Raw maps of all kinds and the class probabilities of one view, from a single forward pass.

    Args:
        maps_of: Outputs -> {kind: raw map}, as a Method gives them; the GRADIENT_KINDS come from gradients instead.
        layers: of the gradient kinds.

    Returns:
        {kind: (B, K, h, w), or one such map per layer} and (B, K) in [0, 1].

    Raises:
        ValueError: a kind that this method does not have; lists those that it has.
    """
    maps: dict[str, Raw] = {}
    by_gradient = [kind for kind in kinds if kind in GRADIENT_KINDS]
    if by_gradient:
        of_kinds, out = gradient_maps(network, image, by_gradient, layers)
        maps.update(of_kinds)
    else:
        with torch.no_grad():
            out = network(image)
    with torch.no_grad():
        maps.update(maps_of(out))
    unknown = [kind for kind in kinds if kind not in maps]
    if unknown:
        raise ValueError(f"cam.kinds: {unknown} not among {sorted({*GRADIENT_KINDS, *maps})}, the kinds of this method")
    return {kind: maps[kind] for kind in kinds}, out.cls_logits_BK.float().sigmoid()


def to_cam(kind: str, raw: Raw) -> Tensor:
    """Raw map of one view -> cam in [0, 1] on its grid (the finest, of several layers)."""
    if isinstance(raw, list):
        size = max((tuple(of_layer.shape[-2:]) for of_layer in raw), key=lambda hw: hw[0] * hw[1])
        return fuse_layers(raw, size) if len(raw) > 1 else normalise_cam(raw[0])
    return raw.float() if kind in PROBABILITIES else normalise_cam(raw)


def sliding_window(view: ViewMaps, *, window_px: int, step_px: int, stride: int, batch_size: int = 16) -> ViewMaps:
    """Maps of frames larger than the window, from overlapping windows, as if the network saw the whole frame.

    Raw maps of the windows are averaged with a weight that falls linearly from a window's middle to its border, so
    that no window begins or ends abruptly, and only then normalised over the frame. A class probability is the
    largest of any window: a frame shows what one of its windows shows.

    Args:
        view: image -> (raw maps, probabilities) of one window; see view_maps.
        window_px: side of the square window.
        step_px: distance of neighbouring windows, at most window_px; the last ones end at the border.
        stride: pixels per cell of the maps; the three lengths above are multiples of it.

    Raises:
        ValueError: lengths that are no multiples of the stride, or a step that leaves gaps.
    """
    if window_px % stride or step_px % stride or not 0 < step_px <= window_px:
        raise ValueError(
            f"cam.window_px {window_px} and cam.step_px {step_px} must be multiples of the network's stride {stride}, "
            "and the step between it and the window"
        )

    def of_frame(image: Tensor) -> tuple[dict[str, Raw], Tensor]:
        height, width = image.shape[-2:]
        high, wide = min(window_px, height), min(window_px, width)
        corners = [(y, x) for y in window_starts(height, high, step_px) for x in window_starts(width, wide, step_px)]
        if len(corners) == 1:
            return view(image)
        windows = torch.cat([image[..., y : y + high, x : x + wide] for y, x in corners])
        parts = [view(windows[i : i + batch_size]) for i in range(0, len(windows), batch_size)]
        probs = torch.cat([probs_BK for _, probs_BK in parts]).unflatten(0, (len(corners), len(image)))
        maps: dict[str, Raw] = {}
        for kind, first in parts[0][0].items():
            per_part = [part[kind] for part, _ in parts]
            if isinstance(first, list):
                maps[kind] = [blend(torch.cat(of_layer), corners, image) for of_layer in zip(*per_part, strict=True)]
            else:
                maps[kind] = blend(torch.cat(per_part), corners, image)  # type: ignore[arg-type]
        return maps, probs.amax(dim=0)

    def blend(raw: Tensor, corners: Sequence[tuple[int, int]], image: Tensor) -> Tensor:
        """Maps of all windows (windows * B, K, h, w) -> (B, K, h, w) of the frame."""
        raw = raw.unflatten(0, (len(corners), len(image)))
        high, wide = raw.shape[-2:]
        cell = min(window_px, image.shape[-2]) // high  # a coarse layer of a CNN has larger cells than the stride
        weight_hw = ramp(high, raw)[:, None] * ramp(wide, raw)
        total = raw.new_zeros(*raw.shape[1:3], image.shape[-2] // cell, image.shape[-1] // cell)
        weights_hw = torch.zeros_like(total[0, 0])
        for (y, x), of_window in zip(corners, raw, strict=True):
            place = (..., slice(y // cell, y // cell + high), slice(x // cell, x // cell + wide))
            total[place] += of_window * weight_hw
            weights_hw[place] += weight_hw
        return total / weights_hw

    return of_frame


def window_starts(length: int, window: int, step: int) -> list[int]:
    """First pixels of the windows along one side; the last window ends at the border."""
    return sorted({*range(0, length - window, step), length - window})


def ramp(cells: int, like: Tensor) -> Tensor:
    """(cells) weights that fall linearly from the middle to the border, all above 0."""
    at = torch.arange(cells, dtype=torch.float32, device=like.device)
    return torch.minimum(at + 1, cells - at) / ((cells + 1) / 2)


def multi_scale_cam(
    view_maps: ViewMaps, image: Tensor, *, stride: int, scales: Sequence[float] = (1.0,), flip: bool = False
) -> tuple[dict[str, Tensor], Tensor]:
    """Cams of every kind and class probabilities, averaged over scales and, with `flip`, over the mirrored image.

    Each view's map is normalised by itself, resized to the finest grid and averaged; the mean is not
    normalised again, so a place that only one scale sees stays weak.

    Args:
        view_maps: image -> (raw maps, probabilities) of one view; see view_maps.
        image: (B, 3, H, W) RGB in [0, 1].
        stride: pixels per cell; views are resized to multiples of it.

    Returns:
        {kind: (B, K, h, w) in [0, 1]} on the grid of the largest scale, and (B, K) in [0, 1].

    Source: smoke paper, section 4.2 (scales 0.5, 1, 1.5, 2); spec C6.
    """
    height, width = image.shape[-2:]
    sizes = [tuple(max(round(side * scale / stride), 1) * stride for side in (height, width)) for scale in scales]
    sums: dict[str, Tensor] = {}
    probs_BK = image.new_zeros(())
    for size in sorted(sizes, reverse=True):  # the finest first: it sets the grid
        view = resize(image, size)
        for mirrored in (False, True)[: 1 + flip]:
            maps, view_probs_BK = view_maps(view.flip(-1) if mirrored else view)
            probs_BK = probs_BK + view_probs_BK
            for kind, raw in maps.items():
                cam_BKhw = to_cam(kind, raw)
                cam_BKhw = cam_BKhw.flip(-1) if mirrored else cam_BKhw
                sums[kind] = sums[kind] + resize(cam_BKhw, sums[kind].shape[-2:]) if kind in sums else cam_BKhw
    views = len(sizes) * (1 + flip)
    return {kind: total / views for kind, total in sums.items()}, probs_BK / views
