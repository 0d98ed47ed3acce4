"""The valid rectangle of an image on pixel, token and point grids."""

import torch
from torch import Tensor


def inside_box(box_B4: Tensor, height: int, width: int) -> Tensor:
    """Which pixels are in the box (y0, y1, x0, x1), half-open, in integer pixels; (B, H, W) bool."""
    y_H = torch.arange(height, device=box_B4.device)
    x_W = torch.arange(width, device=box_B4.device)
    return points_inside(box_B4, y_H, x_W)


def whole_box(image: Tensor) -> Tensor:
    """The box that covers whole images (B, 3, H, W): (B, 4)."""
    batch, _, height, width = image.shape
    return torch.tensor([0, height, 0, width], device=image.device).expand(batch, -1)


def valid_tokens(box_B4: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """Which tokens (i, j) have their centre, at pixel patch * (i, j) + patch // 2, in the box; (B, h, w) bool."""
    y_h, x_w = (torch.arange(cells, device=box_B4.device) * patch + patch // 2 for cells in grid)
    return points_inside(box_B4, y_h, x_w)


def points_inside(box_B4: Tensor, y_h: Tensor, x_w: Tensor) -> Tensor:
    """Which points (y, x) lie in the half-open boxes, (B, h, w) bool."""
    y0_B1, y1_B1, x0_B1, x1_B1 = box_B4[:, :, None].unbind(1)
    rows_Bh = (y0_B1 <= y_h) & (y_h < y1_B1)
    columns_Bw = (x0_B1 <= x_w) & (x_w < x1_B1)
    return rows_Bh[:, :, None] & columns_Bw[:, None, :]
