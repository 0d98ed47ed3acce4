"""One forward pass of a new network on a small black image: whether it runs, whether Grad-CAM works, and which
parameters are never used."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from wsss.models.base import Network, Outputs

OTHERS = "another network, or other options of it"
SIDE_PX = 64  # of the image, or the next multiple of the stride


def try_network(
    network: nn.Module,
    name: str,
    *,
    stride: int,
    grad_cam: bool = True,
    key: str = "model.timm_name",
) -> None:
    """Refuse a network that cannot run, and freeze the parameters that none of its outputs depends on.

    Such a parameter (for example ConvNeXt's head.norm with a 1x1 classifier) cannot be trained, and DDP and ZeRO wait
    for the gradient of every trainable parameter (D-94). `network.unread` names them. Draws no random numbers, changes
    no buffer; the images are 64 px or two cells wide.

    Args:
        name: timm's, for the error.
        key: of the config, which has it.
        stride: pixels per cell.
        grad_cam: whether maps are read from gradients, at `grad_cam_layer(-1)`.

    Raises:
        ValueError: it cannot run, or its layer for Grad-CAM does not exist or has no influence on the class scores.
    """
    side, was_training = stride * math.ceil(max(SIDE_PX, 2 * stride) / stride), network.training
    seen: list[Any] = []
    with must_run(name, type(network).__name__, key=key), torch.enable_grad():
        image = torch.zeros(1, 3, side, side, device=next(network.parameters()).device)
        if not (grad_cam and isinstance(network, Network)):
            out = network.eval()(image)
        else:
            layer = network.grad_cam_layer(-1)
            handle = layer.register_forward_hook(lambda _, inputs, output: seen.append(output))
            out = network.eval()(image)
            handle.remove()
            refuse_deaf_layer(network, seen, out, image)
    network.train(was_training)
    if isinstance(out, Outputs):
        network.map_names = tuple(out.maps)  # type: ignore[assignment]  # as below
    network.unread = freeze_unread(network, tensors_of(out))  # type: ignore[assignment]  # torch types it as a module


def refuse_lone_cell(network: Network, side: int) -> None:
    """Raise ValueError if a trained BatchNorm would get a single value per channel from one image of side x side px,
    for example after a mean over the image: it would have no deviation to divide by. Draws no random numbers, changes
    no buffer; leaves the network in eval mode."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.training]
    cells: list[int] = []
    handles = [
        norm.register_forward_pre_hook(lambda _, inputs: cells.append(inputs[0][:, 0].numel())) for norm in norms
    ]
    try:
        if norms:
            small = min(side, 4 * network.stride)  # where there is one cell of more, it is a mean
            with torch.no_grad():
                network.eval()(torch.zeros(1, 3, small, small, device=next(network.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    if 1 in cells:
        raise ValueError(
            f"for one image of {side} px a BatchNorm of this {type(network).__name__} sees a single value per channel, "
            "which it cannot normalise; wanted two or more images per process and micro-batch"
        )


@contextmanager
def must_run(name: str, kind: str, *, key: str = "model.timm_name", instead: str = OTHERS) -> Iterator[None]:
    """Turn any error inside into a ValueError that names the network: timm's networks fail in many ways when used as
    here.

    Args:
        key: of the config.
        instead: what to choose.
    """
    try:
        yield
    except Exception as error:
        first_line = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{key}: '{name}' does not run as a {kind} ({first_line}); choose {instead}") from error


def refuse_deaf_layer(network: Network, seen: list[Any], out: Outputs, image: Tensor) -> None:
    """Raise ValueError unless the layer for Grad-CAM gave one map on which the class scores depend."""
    if len(seen) != 1 or not isinstance(seen[0], Tensor):
        raise ValueError(f"its last layer for Grad-CAM ran {len(seen)} times, or gives no tensor")
    as_map = network.as_map(seen[0], image)
    if as_map.ndim != 4 or len(as_map) != 1:
        raise ValueError(f"its last layer for Grad-CAM gives {tuple(as_map.shape)}, which is not a map")
    if seen[0].grad_fn not in set(graph_of([out.cls_logits_BK])):
        raise ValueError("its class scores do not depend on its last layer for Grad-CAM")


def freeze_unread(module: nn.Module, outputs: Iterable[Tensor]) -> tuple[str, ...]:
    """Set the trainable parameters that no output depends on to need no gradient; returns their names."""
    names = find_unread(module, outputs)
    for name in names:
        module.get_parameter(name).requires_grad_(False)
    return names


def find_unread(module: nn.Module, outputs: Iterable[Tensor]) -> tuple[str, ...]:
    """Names of the trainable parameters that are in the graph of none of these outputs. Computes no gradient."""
    read = {id(node.variable) for node in graph_of(outputs) if hasattr(node, "variable")}
    read |= {id(output) for output in outputs}
    return tuple(name for name, p in module.named_parameters() if p.requires_grad and id(p) not in read)


def graph_of(outputs: Iterable[Tensor]) -> Iterator[Any]:
    """Every node of the graph that these tensors were computed in, once."""
    waiting = [output.grad_fn for output in outputs if output.grad_fn is not None]
    known = set(waiting)
    while waiting:
        node = waiting.pop()
        yield node
        new = [parent for parent, _ in node.next_functions if parent is not None and parent not in known]
        known.update(new)
        waiting += new


def tensors_of(out: Any) -> list[Tensor]:
    """The tensors in what a network gives: a tensor, Outputs, or either in tuples and dicts."""
    if isinstance(out, Tensor):
        return [out]
    if is_dataclass(out):
        return [tensor for field in fields(out) for tensor in tensors_of(getattr(out, field.name))]
    parts = out.values() if isinstance(out, dict) else out if isinstance(out, tuple | list) else ()
    return [tensor for part in parts for tensor in tensors_of(part)]
