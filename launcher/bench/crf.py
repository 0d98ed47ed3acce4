"""`wsss bench crf`: the dense CRF on the proposed classes compared with all classes."""

import time
from typing import Any

import numpy as np
import torch

from launcher.config.sections import MeanFieldConfig
from wsss.refine.crf import left_out_mass, mean_field, mean_field_of_proposed, proposed_classes
from wsss.tensors import resize


def crf_ratio(*, classes: int, shown: int, images: int, height: int = 375, width: int = 500) -> dict[str, Any]:
    """How many times as fast the CRF is on only background and the proposed classes, and what that changes.

    Both are run in turn on one core, with ToCo's settings for segmentation, on images of noisy regions in which the
    model is fairly sure of the first `shown` classes.

    Returns:
        {"classes", "proposed": mean number, "all_s", "proposed_s": seconds per image, "ratio",
        "agreement": share of pixels with the same class, "moved": mean over pixels of sum_c |dQ_c| / 2,
        "left_out": mean mass of the classes that are not proposed}
    """
    rng, options = np.random.default_rng(0), MeanFieldConfig().model_dump()
    found: dict[str, list[float]] = {
        name: [] for name in ("proposed", "all_s", "proposed_s", "agreement", "moved", "left_out")
    }
    for _ in range(images):
        image_HW3, probs_CHW = crf_scene(rng, classes, shown, height, width)
        started = time.perf_counter()
        every_CHW = mean_field(image_HW3, probs_CHW, **options)
        between = time.perf_counter()
        few_CHW = mean_field_of_proposed(image_HW3, probs_CHW, **options)
        found["proposed_s"].append(time.perf_counter() - between)
        found["all_s"].append(between - started)
        chosen = proposed_classes(probs_CHW)
        found["proposed"].append(len(chosen))
        found["left_out"].append(left_out_mass(probs_CHW, chosen))
        found["agreement"].append(float((every_CHW.argmax(0) == few_CHW.argmax(0)).mean()))
        found["moved"].append(float(np.abs(every_CHW - few_CHW).sum(0).mean() / 2))
    means = {name: float(np.mean(values)) for name, values in found.items()}
    return {"classes": classes, **means, "ratio": means["all_s"] / means["proposed_s"]}


def crf_scene(
    rng: np.random.Generator, classes: int, shown: int, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """An image of flat noisy regions, and (classes, H, W) probabilities of a coarse, unsure segmentation."""
    y_HW, x_HW = np.mgrid[:height, :width] / max(height, width)
    region_HW = np.zeros((height, width), dtype=np.int64)
    for class_id in range(1, shown + 1):
        y, x, radius = rng.uniform(0.2, 0.8, 3) * (1, 1, 0.4)
        region_HW[(y_HW - y) ** 2 + (x_HW - x) ** 2 < radius**2] = class_id
    colour_HW3 = rng.integers(30, 226, (classes, 3))[region_HW]
    image_HW3 = (colour_HW3 + rng.normal(0, 12, (height, width, 3))).clip(0, 255).astype(np.uint8)
    logits_Chw = rng.normal(0, 0.7, (classes, height // 16, width // 16))
    coarse_hw = region_HW[8::16, 8::16][: height // 16, : width // 16]
    logits_Chw += 7.0 * (np.arange(classes)[:, None, None] == coarse_hw)
    logits_CHW = resize(torch.from_numpy(logits_Chw)[None], (height, width))[0]
    return image_HW3, logits_CHW.softmax(dim=0).float().numpy()
