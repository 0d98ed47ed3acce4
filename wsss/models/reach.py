"""Where in an image the cells of a feature map look.

Maps are drawn as if cell i of a grid of stride s looked at pixel s i + (s - 1) / 2, the middle of its square. A ViT's
patches do. A convolution of odd size and stride 2 that is padded alike on all sides has its first output at the first
pixel, so that cell i of a ResNet looks at pixel s i, and its maps lie half a cell too far to the lower right; other
padding and even kernels move them otherwise. `model.shift_px` moves the image against that (D-172).
"""

import torch
from torch import Tensor

from wsss.models.base import Network

IMAGES = 4


def displacement(network: Network, image_px: int = 224) -> tuple[float, float]:
    """How far its maps lie from what they show, in pixels (down, right): to be rounded as model.shift_px.

    The middle of all that a cell's features depend on, by the size of their gradient, in images of noise. It depends
    on the weights, so it is asked of those that will be used.

    Args:
        image_px: a multiple of the stride, and several times as large as what the gradient of a cell covers.
    """
    was_training = network.training
    network.eval()
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(IMAGES, 3, image_px, image_px, generator=generator).requires_grad_()
    with torch.enable_grad():
        features_BDhw = network(image).patches_BDhw
        cell = features_BDhw.shape[-1] // 2
        (gradient,) = torch.autograd.grad(features_BDhw[:, :, cell, cell].square().sum(), image)
    network.train(was_training)
    weight_HW = gradient.abs().sum(dim=(0, 1))
    drawn = network.stride * cell + (network.stride - 1) / 2
    down, right = (drawn - middle(weight_HW.sum(dim=other)) for other in (1, 0))
    return down, right


def middle(weight_N: Tensor) -> float:
    """Mean place of a weight along a line."""
    places_N = torch.arange(len(weight_N), dtype=weight_N.dtype, device=weight_N.device)
    return float((weight_N * places_N).sum() / weight_N.sum())


def check_shift(shift_px: int, stride: int) -> int:
    """shift_px, or ValueError if it is more than a cell."""
    if abs(shift_px) >= stride:
        raise ValueError(
            f"model.shift_px is {shift_px}; wanted less than one cell, {stride} pixels, in either direction"
        )
    return shift_px
