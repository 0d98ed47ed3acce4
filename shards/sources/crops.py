"""Frames with masks -> square crops: the smoke paper's protocol and an even grid (D-34).

A box is (y0, y1, x0, x1) in pixels, half-open. In a mask, 1 is smoke, 0 background, 255 ignored.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from shards.image_bytes import decode_image, encode_image, header_of
from shards.schema import IGNORE_INDEX, Box, ClassSet, DataError, Sample, Source, identity_of
from shards.sources.archives import digest_of_text

Protocol = Literal["legacy", "grid"]
SMOKE_ID = 1
TOP, LEFT = 12, 24  # per cent of the frame with the camera's logo and time
MIN_SMOKE = 0.005  # share of a crop's pixels
POSITIVES = 3  # crops per frame


def legacy_crops(mask_HW: np.ndarray, *, window: int = 512, stride: int = 128, negatives: int = 3) -> list[Box]:
    """The smoke paper's crops of a frame: the 3 with the most smoke, then crops without any.

    The top 12 % of rows and the left 24 % of columns (rounded down) are left out; windows start there and step by
    `stride` as long as they fit. Positives have at least 0.5 % smoke; of equal ones, the first in row-major order is
    taken. The masks of negatives are all 0; they are spread evenly over all such windows in row-major order.

    Args:
        negatives: at most this many.

    Raises:
        DataError: no window fits.
    """
    height, width = mask_HW.shape
    top, left = TOP * height // 100, LEFT * width // 100
    if min(height - top, width - left) < window:
        raise DataError(
            f"frame of {height} x {width} (height, width): without its margins {height - top} x {width - left}; "
            f"no window of {window} fits, use a smaller one"
        )
    boxes = [
        (y, y + window, x, x + window)
        for y in range(top, height - window + 1, stride)
        for x in range(left, width - window + 1, stride)
    ]
    smoke = counts(mask_HW == SMOKE_ID, boxes)
    most = np.argsort(-smoke, kind="stable")[:POSITIVES]
    positives = [boxes[n] for n in most if smoke[n] >= MIN_SMOKE * window * window]
    empty = [box for box, number in zip(boxes, counts(mask_HW != 0, boxes), strict=True) if number == 0]
    taken = min(negatives, len(empty))
    return positives + [empty[k * len(empty) // taken] for k in range(taken)]


def grid_crops(height: int, width: int, *, window: int = 512, stride: int = 512) -> list[Box]:
    """Windows over the whole frame in row-major order, with or without smoke; the last ones end at the border.

    Raises:
        DataError: no window fits, or the stride would leave gaps.
    """
    if min(height, width) < window or not 1 <= stride <= window:
        raise DataError(
            f"frame of {height} x {width} (height, width), window {window}, stride {stride}: "
            "wanted 1 <= stride <= window <= the frame's smaller side"
        )
    starts = [[*range(0, side - window, stride), side - window] for side in (height, width)]
    return [(y, y + window, x, x + window) for y in starts[0] for x in starts[1]]


def counts(true_HW: np.ndarray, boxes: Iterable[Box]) -> np.ndarray:
    """Number of true pixels in each box, from a table of sums."""
    sums = np.zeros((true_HW.shape[0] + 1, true_HW.shape[1] + 1), dtype=np.int64)
    sums[1:, 1:] = true_HW.cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
    return np.array([sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0] for y0, y1, x0, x1 in boxes])


@dataclass(frozen=True, kw_only=True)
class Cropped:
    """Crops of the frames of a source with masks; a crop's label is what its part of the mask shows.

    Attributes:
        boxes: (index of the frame in the source, box) of each crop.
        with_masks: keep masks and regions, for pixel shards. Labels come from the mask either way.
    """

    frames: Source
    boxes: tuple[tuple[int, Box], ...]
    frame_groups: tuple[str, ...]
    with_masks: bool
    class_set: ClassSet

    def __len__(self) -> int:
        return len(self.boxes)

    def groups(self) -> list[str]:
        return [self.frame_groups[frame] for frame, _ in self.boxes]

    def identity(self) -> dict[str, Any] | None:
        frames = identity_of(self.frames)
        return frames and {**frames, "crops": digest_of_text(map(repr, self.boxes))}

    def __getitem__(self, index: int) -> Sample:
        number, box = self.boxes[index]
        frame = self.frames[number]
        mask_HW = mask_of(frame)
        where = f"{frame.source}: sample '{frame.key}'"
        image_HW3 = decode_image(frame.image, where)
        _, orientation = header_of(frame.image, where)
        if image_HW3.shape[:2] != mask_HW.shape:
            raise DataError(f"{where}: mask is {mask_HW.shape}, image is {image_HW3.shape[:2]}: they must be equal")
        y0, y1, x0, x1 = box
        mask_hw = mask_HW[y0:y1, x0:x1]
        regions = {name: clipped(boxes, box) for name, boxes in frame.regions.items()}
        return Sample(
            key=f"{frame.key}_{y0}_{x0}",
            image=encode_image(np.ascontiguousarray(image_HW3[y0:y1, x0:x1]), orientation=orientation),
            image_label=tuple(sorted(set(np.unique(mask_hw).tolist()) - {0, IGNORE_INDEX})),
            group=frame.group,
            source=frame.source,
            mask=mask_hw if self.with_masks else None,
            mask_place=frame.mask_place,
            remarks=frame.remarks,
            regions=regions if self.with_masks else {},
        )


def crop(
    frames: Source,
    protocol: Protocol,
    *,
    window: int = 512,
    stride: int | None = None,
    negatives: int = 3,
    with_masks: bool = True,
    run: Callable[[Callable[[int], list[Box]], Iterable[int]], Iterable[list[Box]]] = map,
) -> Cropped:
    """Choose the crops of all frames, which reads every mask once.

    Args:
        stride: default: 128 for `legacy`, the window for `grid`.
        negatives: maximum of crops without smoke per frame; only for `legacy`, a grid keeps all.
        run: like `map`, for example one that shows progress.

    Raises:
        DataError: a frame without a mask or too small for the window, or no frame gives a crop.
    """
    if protocol == "legacy":
        boxes_of: Callable[[np.ndarray], list[Box]] = partial(
            legacy_crops, window=window, stride=stride or 128, negatives=negatives
        )
    else:
        boxes_of = partial(grid_of_mask, window=window, stride=stride or window)
    planned = run(partial(plan, frames, boxes_of), range(len(frames)))
    boxes = tuple((number, box) for number, found in enumerate(planned) for box in found)
    if not boxes:
        raise DataError(f"protocol '{protocol}': no crop in any of {len(frames)} frames; see its conditions")
    return Cropped(
        frames=frames,
        boxes=boxes,
        frame_groups=tuple(frames.groups()),
        with_masks=with_masks,
        class_set=frames.class_set,
    )


def plan(frames: Source, boxes_of: Callable[[np.ndarray], list[Box]], number: int) -> list[Box]:
    frame = frames[number]
    try:
        return boxes_of(mask_of(frame))
    except DataError as error:
        raise DataError(f"{frame.source}: sample '{frame.key}': {error}") from error


def grid_of_mask(mask_HW: np.ndarray, *, window: int, stride: int) -> list[Box]:
    return grid_crops(*mask_HW.shape, window=window, stride=stride)


def mask_of(frame: Sample) -> np.ndarray:
    if frame.mask is None:
        raise DataError(f"{frame.source}: sample '{frame.key}': has no mask; crops are chosen and labelled by it")
    return frame.mask


def clipped(boxes: Iterable[Box], frame: Box) -> list[Box]:
    """The parts of boxes inside a crop, in the crop's coordinates."""
    y, bottom, x, right = frame
    inside = [(max(y0, y) - y, min(y1, bottom) - y, max(x0, x) - x, min(x1, right) - x) for y0, y1, x0, x1 in boxes]
    return [box for box in inside if box[0] < box[1] and box[2] < box[3]]
