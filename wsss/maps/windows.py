"""Maps of images larger than the network's input, through overlapping windows."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from wsss.maps.cam import Raw, ViewMaps


def sliding_window(view: ViewMaps, *, window_px: int, step_px: int, stride: int, batch_size: int = 16) -> ViewMaps:
    """Maps of frames larger than the window, blended from overlapping windows.

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
            "and the step at most the window"
        )

    def of_frame(image: Tensor) -> tuple[Mapping[str, Raw], Tensor]:
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
                maps[kind] = blend(torch.cat(per_part), corners, image)  # type: ignore[arg-type]  # tensors, like the first
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
    return torch.minimum(at + 1, cells - at)
