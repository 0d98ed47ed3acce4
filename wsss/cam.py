"""Class activation maps: where a classifier sees a class.

Shapes: B images, K classes, D channels, L layers, h x w feature grid, H x W pixels.
A raw map has any range; a `cam` is in [0, 1].
"""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.models.base import Network, Outputs

ViewMaps = Callable[[Tensor], tuple[dict[str, Tensor], Tensor]]  # image -> ({kind: raw map}, class probabilities)


def normalise_cam(raw_BKhw: Tensor) -> Tensor:
    """Raw map -> cam in [0, 1]: ReLU, then min-max over the positions of each image and class.

        x = relu(raw),   x <- x - min x,   cam = x / (max x + 1e-7)

    A map that is nowhere positive gives all zeros.

    Source: [C] of the smoke paper's code; see spec, 2.4 and C4.
    """
    x = F.relu(raw_BKhw.float())
    x = x - x.amin(dim=(-2, -1), keepdim=True)
    return x / (x.amax(dim=(-2, -1), keepdim=True) + 1e-7)


def grad_cam(network: Network, image: Tensor, layers: Sequence[int] = (-1,)) -> tuple[Tensor, Outputs]:
    """Raw Grad-CAM of every class at each of the layers, and the forward pass that it came from.

        alpha_c = mean over h, w of d logit_k / d A_c,   raw_k = sum_c alpha_c A_c

    where A is the output of the layer, without prefix tokens for a ViT. One forward pass, one backward pass
    per class, and no gradient below the first of the layers.

    Args:
        image: (B, 3, H, W) RGB in [0, 1].
        layers: block numbers as in a list; -1 is the last.

    Returns:
        (L, B, K, h, w) and the Outputs, all detached.

    Source: Selvaraju et al. 2017 (Grad-CAM, Eq. 1-2, without its ReLU); layer blocks[-1].norm1 as in the smoke paper.
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
    per_class = []
    for class_index in range(out.cls_logits_BK.shape[1]):
        # Images do not influence each other in eval mode, so the backward pass of the sum serves the whole batch.
        # A batched backward pass (vmap) over the classes was measured slower on a CPU and needs K times the memory.
        gradients = torch.autograd.grad(out.cls_logits_BK[:, class_index].sum(), activations, retain_graph=True)
        maps = [weigh(network, a, g, image) for a, g in zip(activations, gradients, strict=True)]
        per_class.append(torch.stack(maps))
    detached = Outputs(out.cls_logits_BK.detach(), out.patches_BDhw.detach(), out.class_map_BKhw.detach())
    return torch.stack(per_class, dim=2).detach(), detached


def weigh(network: Network, activation: Tensor, gradient: Tensor, image: Tensor) -> Tensor:
    """Activation and gradient of one layer -> raw Grad-CAM (B, h, w)."""
    activation_BDhw = network.as_map(activation.float(), image)
    gradient_BDhw = network.as_map(gradient.float(), image)
    return weighted_sum(activation_BDhw, gradient_BDhw)


def weighted_sum(activation_BDhw: Tensor, gradient_BDhw: Tensor) -> Tensor:
    """Channels weighed by their mean gradient: sum_c mean_hw(g_c) a_c, (..., D, h, w) -> (..., h, w)."""
    alpha_BD11 = gradient_BDhw.mean(dim=(-2, -1), keepdim=True)
    return (alpha_BD11 * activation_BDhw).sum(dim=-3)


def view_maps(
    network: Network,
    maps_of: Callable[[Outputs], Mapping[str, Tensor]],
    image: Tensor,
    kinds: Sequence[str],
    layers: Sequence[int] = (-1,),
) -> tuple[dict[str, Tensor], Tensor]:
    """Raw maps of all kinds and the class probabilities of one view, from a single forward pass.

    Args:
        maps_of: Outputs -> {kind: raw map}, as a Method gives them; 'grad' comes from gradients instead.
        layers: of 'grad'. The maps of several layers are each normalised, averaged and so fused.

    Returns:
        {kind: (B, K, h, w)} and (B, K) in [0, 1].

    Raises:
        ValueError: a kind that this method does not have; lists those that it has.
    """
    maps: dict[str, Tensor] = {}
    if "grad" in kinds:
        per_layer, out = grad_cam(network, image, layers)
        maps["grad"] = per_layer[0] if len(layers) == 1 else normalise_cam(per_layer).mean(dim=0)
    else:
        with torch.no_grad():
            out = network(image)
    with torch.no_grad():
        maps.update(maps_of(out))
    unknown = [kind for kind in kinds if kind not in maps]
    if unknown:
        raise ValueError(f"cam.kinds: {unknown} not among {sorted({'grad', *maps})}, the kinds of this method")
    return {kind: maps[kind] for kind in kinds}, out.cls_logits_BK.float().sigmoid()


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
            for kind, raw_BKhw in maps.items():
                cam_BKhw = normalise_cam(raw_BKhw)
                cam_BKhw = cam_BKhw.flip(-1) if mirrored else cam_BKhw
                sums[kind] = sums[kind] + resize(cam_BKhw, sums[kind].shape[-2:]) if kind in sums else cam_BKhw
    views = len(sizes) * (1 + flip)
    return {kind: total / views for kind, total in sums.items()}, probs_BK / views


def resize(map_BChw: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, half-pixel centres, edges clamped, no antialias."""
    if tuple(map_BChw.shape[-2:]) == tuple(size):
        return map_BChw
    return F.interpolate(map_BChw, size=tuple(size), mode="bilinear", align_corners=False)
