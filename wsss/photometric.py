"""Colour, blur and mirror of a batch of images on the device, from parameters that the loader drew for each sample.

The draw belongs to the sample, so that it depends neither on the batch nor on the process; the work is done here,
for the whole batch at once and without a look at the values.

Shapes: B images of H x W pixels, RGB in [0, 1]; 8 parameters, COLUMNS.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.tensors import at_least_float32, full_precision

COLUMNS = (
    "brightness",  # factor; 1 = none
    "contrast",  # factor of the distance from the mean grey; 1 = none
    "saturation",  # factor of the distance from each pixel's grey; 1 = none
    "hue",  # shift in turns, -0.5 to 0.5; 0 = none
    "grey",  # 1 = grey image
    "blur",  # sigma of a Gaussian in pixels, up to MAX_SIGMA; 0 = none
    "solarise",  # 1 = values of 0.5 and more become 1 - value
    "mirror",  # 1 = horizontal mirror
)
MAX_SIGMA = 2.0
RADIUS = math.ceil(3 * MAX_SIGMA)
GREY = (0.299, 0.587, 0.114)


@torch.no_grad()
def photometric(image_B3HW: Tensor, params_B8: Tensor) -> Tensor:
    """The images under these parameters: mirror, then brightness, contrast, saturation, hue, grey, blur, solarise.

    Each part is defined as torchvision's and clamped to [0, 1], but the order is fixed, where torchvision's ColorJitter
    draws one. Where a column is neutral, the image passes that part bit for bit.

    Args:
        image_B3HW: RGB in [0, 1].
        params_B8: see COLUMNS.

    Returns:
        (B, 3, H, W) in [0, 1], float32 or better, without a graph.

    Raises:
        ValueError: as many rows of 8 parameters as there are images are wanted.
    """
    if params_B8.shape != (len(image_B3HW), len(COLUMNS)):
        raise ValueError(
            f"photometric: parameters {tuple(params_B8.shape)} for {len(image_B3HW)} images; wanted "
            f"({len(image_B3HW)}, {len(COLUMNS)}): {', '.join(COLUMNS)}"
        )
    with full_precision(image_B3HW):
        x_B3HW = at_least_float32(image_B3HW)
        columns_B111 = params_B8.to(x_B3HW.dtype)[:, :, None, None, None].unbind(dim=1)
        brightness, contrast, saturation, hue, grey, blur, solarise, mirror = columns_B111
        x_B3HW = torch.where(mirror > 0, x_B3HW.flip(-1), x_B3HW)
        x_B3HW = (brightness * x_B3HW).clamp(0, 1)
        x_B3HW = mixed(x_B3HW, grey_of(x_B3HW).mean(dim=(2, 3), keepdim=True), contrast)
        x_B3HW = mixed(x_B3HW, grey_of(x_B3HW), saturation)
        x_B3HW = torch.where(hue != 0, hue_shifted(x_B3HW, hue), x_B3HW)
        x_B3HW = torch.where(grey > 0, grey_of(x_B3HW), x_B3HW)
        # A sigma of 0 is a kernel of one pixel; the choice keeps the bits also where convolutions run in TF32.
        x_B3HW = torch.where(blur > 0, blurred(x_B3HW, blur.flatten()), x_B3HW)
        return torch.where((solarise > 0) & (x_B3HW >= 0.5), 1 - x_B3HW, x_B3HW)


def grey_of(x_B3HW: Tensor) -> Tensor:
    """(B, 1, H, W): the luma of ITU-R 601, as PIL's."""
    red, green, blue = x_B3HW.split(1, dim=1)
    return GREY[0] * red + GREY[1] * green + GREY[2] * blue


def mixed(x_B3HW: Tensor, base: Tensor, factor_B111: Tensor) -> Tensor:
    """factor x + (1 - factor) base, clamped."""
    return (factor_B111 * x_B3HW + (1 - factor_B111) * base).clamp(0, 1)


def hue_shifted(x_B3HW: Tensor, turns_B111: Tensor) -> Tensor:
    """Rotates hue at unchanged value V = max and chroma C = max - min.

    With the hue h in turns, each channel is V - C clamp(min(k, 4 - k), 0, 1), k = (n + 6 h) mod 6, n = 5, 3, 1 for
    R, G, B: the closed form of the hexagon, whose inverse gives h.
    """
    value_BHW, chroma_BHW = x_B3HW.amax(dim=1), x_B3HW.amax(dim=1) - x_B3HW.amin(dim=1)
    red, green, blue = x_B3HW.unbind(dim=1)
    scale_BHW = chroma_BHW.clamp(min=torch.finfo(x_B3HW.dtype).tiny)
    sixths_BHW = torch.where(
        value_BHW == red,
        (green - blue) / scale_BHW,
        torch.where(value_BHW == green, 2 + (blue - red) / scale_BHW, 4 + (red - green) / scale_BHW),
    )
    start_311 = torch.arange(5, 0, -2, device=x_B3HW.device)[:, None, None]
    k_B3HW = (start_311 + sixths_BHW[:, None] + 6 * turns_B111) % 6
    share_B3HW = torch.minimum(k_B3HW, 4 - k_B3HW).clamp(0, 1)
    return (value_BHW[:, None] - chroma_BHW[:, None] * share_B3HW).clamp(0, 1)


def blurred(x_B3HW: Tensor, sigma_B: Tensor) -> Tensor:
    """A Gaussian of each image's own sigma, cut off at RADIUS, with the border pixels repeated outwards as PIL does."""
    images, channels, height, width = x_B3HW.shape
    offset_T = torch.arange(-RADIUS, RADIUS + 1, device=x_B3HW.device, dtype=x_B3HW.dtype)
    weight_BT = torch.softmax(-0.5 * (offset_T / sigma_B.clamp(min=1e-3)[:, None]) ** 2, dim=1)
    kernel_NT = weight_BT.repeat_interleave(channels, dim=0)  # N = B * 3 maps, one group each
    x_1NHW = x_B3HW.reshape(1, images * channels, height, width)
    x_1NHW = F.pad(x_1NHW, (RADIUS, RADIUS, RADIUS, RADIUS), mode="replicate")
    x_1NHW = F.conv2d(x_1NHW, kernel_NT[:, None, None, :], groups=images * channels)
    x_1NHW = F.conv2d(x_1NHW, kernel_NT[:, None, :, None], groups=images * channels)
    return x_1NHW.view(images, channels, height, width).clamp(0, 1)
