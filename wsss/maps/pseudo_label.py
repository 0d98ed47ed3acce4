"""Label maps made from cams and image labels.

Shapes: B images, P present classes, Q = P + 1 with background first, T = 2 thresholds, H x W pixels, h x w grid.

Packed: `present` (B, P) holds the class channels of each image's label in ascending order, padded with -1; `cam`
(B, P, H, W) holds their maps in [0, 1], exactly 0 in padded channels. A label map has 0 background, channel + 1 for a
class, 255 ignore. Cams are compared with thresholds in float32.

Source: ToCo, section 3, in the form of its code (D-76: 2, 4 and 8); golden `camlabel`, `refine`, `valid` of `msee`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.maps.boxes import inside_box
from wsss.maps.par import DILATIONS, pixel_adaptive_refinement
from wsss.tensors import IGNORE_INDEX, at_least_float32, resize

CERTAIN_BACKGROUND, UNCERTAIN, CERTAIN_FOREGROUND = 0, 1, 2
"""What maps of certainty hold: see certainty."""


def seed_label(
    cam_BPHW: Tensor, present_BP: Tensor, *, bg_threshold: float, fg_threshold: float, box_B4: Tensor | None = None
) -> Tensor:
    """Label map of the strongest class: m = max_p cam_p.

        m <= bg_threshold          0
        m in between               255
        m > fg_threshold           its class

    With equal thresholds nothing is in between. An image without any class is background.

    Args:
        box_B4: valid rectangle (y0, y1, x0, x1) in cells of the cam, half-open: 255 outside. None: all is valid.

    Returns:
        (B, H, W) int64.

    Raises:
        ValueError: shapes that do not fit, or see check_thresholds.
    """
    check_packed(cam_BPHW, present_BP)
    check_thresholds(bg_threshold, fg_threshold)
    strongest_BHW, index_BHW = cam_BPHW.float().max(dim=1)
    label_BHW = class_ids(index_BHW + 1, present_BP)
    label_BHW = label_BHW.masked_fill(strongest_BHW <= fg_threshold, IGNORE_INDEX)
    label_BHW = label_BHW.masked_fill(strongest_BHW <= bg_threshold, 0)
    return label_BHW if box_B4 is None else ignore_outside(label_BHW, box_B4)


def cam_label(cam_1PHW: Tensor, present_1P: Tensor, size: Sequence[int], threshold: float) -> Tensor:
    """The cam of one image, resized to `size` -> (*size) int64 class ids; background where it is <= threshold."""
    return seed_label(resize(cam_1PHW, size), present_1P, bg_threshold=threshold, fg_threshold=threshold)[0]


def certainty(cam_BPHW: Tensor, *, bg_threshold: float, fg_threshold: float) -> Tensor:
    """Certainty of the strongest class: 0 (background) if m <= bg_threshold, 2 (foreground) if m >= fg_threshold, else
    1.

    Returns:
        (B, H, W) int64.

    Raises:
        ValueError: see check_thresholds.
    """
    check_thresholds(bg_threshold, fg_threshold)
    strongest_BHW = cam_BPHW.float().amax(dim=1)
    certain_BHW = torch.where(strongest_BHW >= fg_threshold, CERTAIN_FOREGROUND, UNCERTAIN)
    return certain_BHW.masked_fill(strongest_BHW <= bg_threshold, CERTAIN_BACKGROUND)


def refined_label(
    image_B3HW: Tensor,
    cam_BPHW: Tensor,
    present_BP: Tensor,
    box_B4: Tensor,
    *,
    bg_threshold: float,
    fg_threshold: float,
    down_scale: int = 2,
    dilations: Sequence[int] = DILATIONS,
    num_iter: int = 10,
) -> Tensor:
    """Label map of CAMs that compete with a constant background score and are refined along the image.

    For t in (bg_threshold, fg_threshold), at 1 / down_scale of the size: softmax of [t, cams], PAR, back to the full
    size, argmax. A class that wins against fg_threshold is the label; where background wins against both it is 0; the
    rest, and what is outside the box, is 255. An image without any class is background inside its box.

    PAR is linear in its maps, so both thresholds are refined together, as 2 (P + 1) maps.

    Args:
        image_B3HW: RGB in [0, 1], of the size of the cams.
        box_B4: valid rectangle (y0, y1, x0, x1) in pixels, half-open.

    Returns:
        (B, H, W) int64.

    Raises:
        ValueError: shapes that do not fit, an image smaller than down_scale; see also check_thresholds and maps.par.
    """
    check_packed(cam_BPHW, present_BP)
    check_thresholds(bg_threshold, fg_threshold)
    batch, _, height, width = cam_BPHW.shape
    if image_B3HW.shape[0] != batch or image_B3HW.shape[-2:] != (height, width):
        raise ValueError(
            f"refined_label: image {tuple(image_B3HW.shape)} and cam {tuple(cam_BPHW.shape)} differ in B or size: "
            "resize the cams to the image first"
        )
    small = height // down_scale, width // down_scale
    if min(small) < 1:
        raise ValueError(
            f"refined_label: nothing is left of {height} x {width} pixels at 1/{down_scale} of their size; choose a "
            "smaller down_scale"
        )
    probs_BTQhw = scores_with_background(
        resize(at_least_float32(cam_BPHW), small), present_BP, (bg_threshold, fg_threshold)
    ).softmax(2)
    image_B3hw = resize(at_least_float32(image_B3HW), small)
    refined_BRhw = pixel_adaptive_refinement(
        image_B3hw, probs_BTQhw.flatten(1, 2), dilations=dilations, num_iter=num_iter
    )
    winner_BTHW = resize(refined_BRhw, (height, width)).unflatten(1, probs_BTQhw.shape[1:3]).argmax(dim=2)
    low_BHW, high_BHW = class_ids(winner_BTHW, present_BP).unbind(1)
    label_BHW = torch.where((high_BHW == 0) & (low_BHW != 0), IGNORE_INDEX, high_BHW)
    return ignore_outside(label_BHW, box_B4)


def scores_with_background(cam_BPhw: Tensor, present_BP: Tensor, thresholds: Sequence[float]) -> Tensor:
    """[t, cam_1, ..., cam_P] for each threshold t, (B, T, Q, h, w): -inf where a channel is padding, so that it has no
    share in a softmax over Q."""
    cam_BPhw = cam_BPhw.masked_fill((present_BP < 0)[:, :, None, None], -torch.inf)
    of_thresholds = [
        torch.cat([torch.full_like(cam_BPhw[:, :1], threshold), cam_BPhw], dim=1) for threshold in thresholds
    ]
    return torch.stack(of_thresholds, dim=1)


def class_ids(index: Tensor, present_BP: Tensor) -> Tensor:
    """Packed ids (0 background, p + 1 for packed channel p) -> class ids (0 background, channel + 1); (B, ...)."""
    ids_BQ = torch.cat([torch.zeros_like(present_BP[:, :1]), present_BP + 1], dim=1)
    return ids_BQ.gather(1, index.flatten(1)).view_as(index)


def labels_on_grid(label_BHW: Tensor, grid: Sequence[int]) -> Tensor:
    """The label at the middle of each cell of a grid (h, w), (B, h, w) int64."""
    return F.interpolate(label_BHW[:, None].float(), size=tuple(grid), mode="nearest-exact")[:, 0].long()


def ignore_outside(label_BHW: Tensor, box_B4: Tensor) -> Tensor:
    """A label map (B, H, W) with 255 outside the box."""
    return label_BHW.masked_fill(~inside_box(box_B4, *label_BHW.shape[-2:]), IGNORE_INDEX)


def check_packed(cam_BPHW: Tensor, present_BP: Tensor) -> None:
    """Raise ValueError unless these are the maps of present classes: (B, P, H, W) and (B, P), P >= 1."""
    if cam_BPHW.dim() != 4 or present_BP.shape != cam_BPHW.shape[:2] or cam_BPHW.shape[1] < 1:
        raise ValueError(
            f"pseudo label: cam {tuple(cam_BPHW.shape)} and present {tuple(present_BP.shape)}; wanted (B, P, H, W) and "
            "(B, P) with P >= 1: take the cams of the present classes only"
        )


def check_thresholds(bg_threshold: float, fg_threshold: float) -> None:
    """Raise ValueError unless 0 <= bg_threshold <= fg_threshold <= 1."""
    if not 0 <= bg_threshold <= fg_threshold <= 1:
        raise ValueError(
            f"bg_threshold {bg_threshold}, fg_threshold {fg_threshold}: wanted 0 <= bg_threshold <= fg_threshold <= 1"
        )
