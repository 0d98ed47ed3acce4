"""Dark channel prior: haze and smoke brighten even the darkest colour channel of a place, so dark places show none.

Shapes: B images, H x W pixels, h x w attention grid.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.tensors import at_least_float32, resize

FLAT = 1e-5  # a map whose range is below this share of its largest magnitude is constant up to rounding


def dark_channel(image_B3HW: Tensor, *, window_px: int = 15) -> Tensor:
    """min over RGB and over a window centred on each pixel, (B, H, W) in [0, 1]; the window is cut off at the border.

    Args:
        image_B3HW: RGB in [0, 1], before normalisation by mean and deviation.
        window_px: side of the square window, odd.

    Raises:
        ValueError: an even window, integer pixels, or not (B, 3, H, W).

    Source: He, Sun and Tang 2009; window 15 as there (D-43).
    """
    if window_px < 1 or window_px % 2 == 0:
        raise ValueError(f"dark_channel: window_px is {window_px}; wanted an odd number >= 1, to have a centre")
    if image_B3HW.dim() != 4 or image_B3HW.shape[1] != 3 or not image_B3HW.is_floating_point():
        raise ValueError(
            f"dark_channel: image is {tuple(image_B3HW.shape)} of {image_B3HW.dtype}; wanted (B, 3, H, W) RGB in [0, 1]"
        )
    negated_BHW = -image_B3HW.amin(dim=1)
    half = window_px // 2
    # The maximum over a square is the maximum over its columns of the maxima over its rows: 2 windows, not window^2.
    negated_BHW = F.max_pool2d(negated_BHW, (1, window_px), stride=1, padding=(0, half))
    return -F.max_pool2d(negated_BHW, (window_px, 1), stride=1, padding=(half, 0))


def dark_channel_loss(attention_Bhw: Tensor, image_B3HW: Tensor, *, window_px: int = 15) -> Tensor:
    """mean over images and positions of a (1 - d): attention where the image is dark.

    a is the attention and d the dark channel resized to its grid, both min-max normalised per image. A constant map
    becomes 0: constant attention has loss 0 and no gradient; with a constant dark channel the loss is mean a.

    Args:
        attention_Bhw: last layer's attention from the class token to the patches, averaged over heads.
        image_B3HW, window_px: see dark_channel.

    Returns:
        Scalar in [0, 1], in float32 or better; gradient to the attention.

    Source: smoke paper's code, which takes the dark channel of normalised images; corrected here (D-43).
    """
    dark_Bhw = resize(dark_channel(image_B3HW.float(), window_px=window_px)[:, None], attention_Bhw.shape[-2:])[:, 0]
    return (min_max(at_least_float32(attention_Bhw)) * (1 - min_max(dark_Bhw))).mean()


def min_max(x_Bhw: Tensor) -> Tensor:
    """(x - min) / (max - min) of each map; exactly 0, with gradient 0, for a constant one."""
    low_B11, high_B11 = x_Bhw.amin(dim=(-2, -1), keepdim=True), x_Bhw.amax(dim=(-2, -1), keepdim=True)
    range_B11 = high_B11 - low_B11
    flat_B11 = range_B11 <= FLAT * torch.maximum(low_B11.abs(), high_B11.abs())
    return (x_Bhw - low_B11) / torch.where(flat_B11, torch.inf, range_B11)
