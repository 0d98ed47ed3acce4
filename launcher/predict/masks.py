"""Maps and probabilities of a frame -> its mask, and a row about it.

Shapes: K classes, n classes that pass the gate, h x w grid, H x W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage  # type: ignore[import-untyped]

from launcher.config.sections import SegmentConfig
from launcher.jobs.scores import at_size
from launcher.predict.settings import Settings
from launcher.predict.views import Looked
from shards.batches.augment import resize
from shards.schema import IGNORE_INDEX, DataError
from wsss.maps.cam import PROBABILITIES
from wsss.refine.chain import run_chain
from wsss.refine.crf import mean_field
from wsss.refine.threshold import mask_of

REFINED_PX = 1024  # longer frames are refined at this length: a CRF's widths are in pixels, and its time grows with it
BOXES = 10  # maximum number per class, of its largest components


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One frame.

    Attributes:
        mask: (H, W) uint8 class ids 1..K, 0 = background, 255 = ignored.
        classes: names of all classes, in the order of their ids.
        probs: (K,) probability that the class is in the frame.
        shown: ids of the classes that pass the gate.
        scores: (n, H, W) float32 in [0, 1] of these classes.
    """

    mask: np.ndarray
    classes: tuple[str, ...]
    probs: np.ndarray
    shown: tuple[int, ...]
    scores: np.ndarray


def predict_frame(
    image_HW3: np.ndarray, looked: Looked, settings: Settings, classes: tuple[str, ...], segment: SegmentConfig
) -> Prediction:
    """The mask of a frame.

    Args:
        segment: the CRF settings for maps that are probabilities.

    Raises:
        DataError: the picture of the ignored area has another size.
    """
    size = image_HW3.shape[0], image_HW3.shape[1]
    check_kept(settings, size)
    shown = tuple(int(k) + 1 for k in np.flatnonzero(looked.probs >= settings.gate))
    scores_nHW = at_size(looked.cam[[class_id - 1 for class_id in shown]], size)
    if settings.chain and shown:
        scores_nHW = refined(image_HW3, scores_nHW, settings, segment)
    if settings.kept is not None:
        scores_nHW = scores_nHW * settings.kept
    if settings.threshold is None:
        probs_CHW = np.concatenate([1 - scores_nHW.sum(0, keepdims=True), scores_nHW])
        mask_HW = np.asarray((0, *shown), dtype=np.uint8)[probs_CHW.argmax(0)]
    else:  # a score of 0 is background at any threshold
        mask_HW = mask_of(scores_nHW, shown, threshold=max(settings.threshold, float(np.finfo(np.float32).tiny)))
    if settings.kept is not None:
        mask_HW[~settings.kept] = IGNORE_INDEX
    return Prediction(mask=mask_HW, classes=classes, probs=looked.probs, shown=shown, scores=scores_nHW)


def check_kept(settings: Settings, size: tuple[int, int]) -> None:
    """Raise DataError if the picture of the ignored area has another size than a frame."""
    if settings.kept is not None and settings.kept.shape != size:
        high, wide = settings.kept.shape
        raise DataError(
            f"frame is {size[0]} x {size[1]}, --ignore {settings.ignore} is {high} x {wide} (height x width): wanted a "
            "picture of the frame's size"
        )


def refined(image_HW3: np.ndarray, scores_nHW: np.ndarray, settings: Settings, segment: SegmentConfig) -> np.ndarray:
    """Scores after the chain, refined at REFINED_PX at most."""
    size = image_HW3.shape[:2]
    factor = min(REFINED_PX / max(size), 1.0)
    small = (max(round(size[0] * factor), 1), max(round(size[1] * factor), 1))
    image_hw3, scores_nhw = resize(image_HW3, small), at_size(scores_nHW, small)
    if settings.kind in PROBABILITIES and settings.refine == "crf":
        background_1hw = 1 - scores_nhw.sum(0, keepdims=True)
        probs_Chw = np.concatenate([background_1hw, scores_nhw])
        refined_nhw = mean_field(image_hw3, probs_Chw, **segment.mean_field.model_dump())[1:]
    else:
        refined_nhw = run_chain(settings.chain, image_hw3, scores_nhw, {})
    return at_size(np.ascontiguousarray(refined_nhw), (size[0], size[1]))


def describe_classes(prediction: Prediction) -> list[dict[str, Any]]:
    """One row per class: probability, area, boxes of its components, mean score."""
    mask_HW = prediction.mask
    looked_at = max(int((mask_HW != IGNORE_INDEX).sum()), 1)
    rows = []
    for class_id, name in enumerate(prediction.classes, start=1):
        inside_HW = mask_HW == class_id
        area_px = int(inside_HW.sum())
        components, boxes = boxes_of(inside_HW) if area_px else (0, [])
        mean = prediction.scores[prediction.shown.index(class_id)][inside_HW].mean() if area_px else None
        rows.append({
            "class": name,
            "probability": round(float(prediction.probs[class_id - 1]), 4),
            "area_px": area_px,
            "area_percent": round(100 * area_px / looked_at, 3),
            "components": components,
            "boxes": boxes,
            "mean_score": None if mean is None else round(float(mean), 4),
        })  # fmt: skip
    return rows


def boxes_of(inside_HW: np.ndarray) -> tuple[int, list[list[int]]]:
    """(number of components, [x0, y0, x1, y1] in pixels, half-open, of the largest ones), the largest first."""
    labels_HW, count = ndimage.label(inside_HW, structure=np.ones((3, 3)))
    sizes = np.bincount(labels_HW.reshape(-1), minlength=count + 1)[1:]
    slices: Sequence[Any] = ndimage.find_objects(labels_HW)
    boxes = []
    for number in np.argsort(-sizes, kind="stable")[:BOXES]:
        rows, columns = slices[number]
        boxes.append([int(columns.start), int(rows.start), int(columns.stop), int(rows.stop)])
    return count, boxes
