"""Grad-CAM and LayerCAM from one backward pass."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:  # what reads or counts maps needs no networks, whose import takes seconds
    from wsss.models.base import Network, Outputs


def gradient_maps(
    network: "Network", image: Tensor, kinds: Sequence[str] = ("grad",), layers: Sequence[int] = (-1,)
) -> tuple[dict[str, list[Tensor]], "Outputs"]:
    """Raw maps of the gradient kinds of every class at each of the layers, and the forward pass they came from.

    With A the output of a layer (without prefix tokens for a ViT) and g = d logit_k / d A, a kind is a function of
    the two; see GRADIENT_KINDS. One forward pass, one backward pass per class, and no gradient below the first of
    the layers.

    Args:
        image: (B, 3, H, W) RGB in [0, 1].
        layers: block numbers as in a list; -1 is the last.

    Returns:
        {kind: L maps (B, K, h, w)} and the Outputs, all detached.

    Raises:
        ValueError: no such layer, or one twice.
    """
    modules = [network.grad_cam_layer(index) for index in layers]
    if len({*map(id, modules)}) < len(modules):
        raise ValueError(f"cam.layers is {list(layers)}, which names one layer twice; leave one out")
    with torch.no_grad(), recording(modules) as activations:
        out = network(image)  # without a graph until the first of the layers; leaving the block restores the mode
        maps = class_maps(network, image, out.cls_logits_BK, activations, kinds)
    return maps, out.detached()


@contextmanager
def recording(modules: Sequence[torch.nn.Module]) -> Iterator[list[Tensor]]:
    """Record the output of each module in one forward pass; the graph begins at the first module that runs."""
    found: dict[int, Tensor] = {}
    activations: list[Tensor] = []

    def keep(position: int) -> Callable:
        def hook(module: torch.nn.Module, inputs: tuple, output: Tensor) -> Tensor:
            # The first of the layers that runs is where the graph begins: what lies below it is not recorded.
            torch.set_grad_enabled(True)
            found[position] = output if found else output.detach().requires_grad_()
            activations[:] = [found[position] for position in sorted(found)]
            return found[position]

        return hook

    handles = [module.register_forward_hook(keep(position)) for position, module in enumerate(modules)]
    try:
        yield activations
    finally:
        for handle in handles:
            handle.remove()


def class_maps(
    network: "Network", image: Tensor, scores_BQ: Tensor, activations: Sequence[Tensor], kinds: Sequence[str]
) -> dict[str, list[Tensor]]:
    """{kind: L maps (B, Q, h, w)}, detached: one map per column of `scores`, which were computed from `activations`."""
    maps = [network.as_map(activation.detach().float(), image) for activation in activations]
    found: dict[str, list[list[Tensor]]] = {kind: [[] for _ in maps] for kind in kinds}
    for score_B in scores_BQ.unbind(1):
        # Images do not influence each other in eval mode, so the backward pass of the sum serves the whole batch.
        # A batched backward pass (vmap) over the classes was measured slower on a CPU and needs K times the memory.
        gradients = torch.autograd.grad(score_B.sum(), activations, retain_graph=True)
        for position, (map_BDhw, gradient) in enumerate(zip(maps, gradients, strict=True)):
            gradient_BDhw = network.as_map(gradient.float(), image)
            for kind in kinds:
                found[kind][position].append(GRADIENT_KINDS[kind](map_BDhw, gradient_BDhw))
    return {kind: [torch.stack(classes, dim=1) for classes in of_layers] for kind, of_layers in found.items()}


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
