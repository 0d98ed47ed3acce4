"""Measurements before and beside a run: what learning rate a method takes, how much a CRF of few classes saves."""

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from launcher.build import build_method, run_folder
from launcher.config import Config, MeanFieldConfig
from launcher.inputs import batches_from, training_shards
from launcher.pictures import curves_svg
from launcher.topology import uses_cpu
from launcher.trainer import seed_step, to_device
from wsss.optim import parameter_groups
from wsss.refine.crf import mean_field, mean_field_of_proposed, proposed_classes
from wsss.resize import resize

LR_RANGE = "lr_range"


def lr_range(config: Config, *, low: float = 1e-7, high: float = 1.0, steps: int = 100) -> dict[str, Any]:
    """Learning-rate range test: train from the start while the rate grows exponentially, and watch the loss.

        lr_t = low (high / low)^(t / (steps - 1)),   smoothed_t = (sum_i 0.9^(t-i) loss_i) / (sum_i 0.9^(t-i))

    It ends early when the smoothed loss exceeds four times its minimum. The suggested rate is the one where the
    smoothed loss falls fastest per decade. Writes RUN/lr_range.json and lr_range.svg; no checkpoint, nothing that a
    training of the run would go on from.

    Returns:
        {"lr": [...], "loss": [...], "smoothed": [...], "suggested": lr}

    Source: Smith 2017; smoke paper, section 4.2 (1e-7 to 100 in 100 steps, chose 1e-4; spec P6).
    """
    device = torch.device("cpu" if uses_cpu(config) else "cuda")
    shards = training_shards(config)
    torch.manual_seed(config.train.seed)
    method = build_method(config, shards.index.as_class_set()).to(device).train()
    optimizer = torch.optim.AdamW(parameter_groups(method, config.train.weight_decay), lr=low)
    batches = batches_from(config, shards, 0, 1, 0)
    found: dict[str, Any] = {"lr": [], "loss": [], "smoothed": []}
    total = weight = 0.0
    for step in range(steps):
        lr = low * (high / low) ** (step / max(steps - 1, 1))
        for group in optimizer.param_groups:
            group["lr"] = lr
        seed_step(config.train.seed, step, 0)
        loss = method(to_device(next(batches), device), step)["loss"]
        value = loss.item()
        total, weight = 0.9 * total + value, 0.9 * weight + 1
        smoothed = total / weight
        if not math.isfinite(value) or (found["smoothed"] and smoothed > 4 * min(found["smoothed"])):
            break
        for name, number in (("lr", lr), ("loss", value), ("smoothed", smoothed)):
            found[name].append(number)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    found["suggested"] = steepest(found["lr"], found["smoothed"])
    save(run_folder(config), config.name, found)
    return found


def steepest(lr: list[float], smoothed: list[float]) -> float | None:
    """The rate at which the loss falls fastest per decade; None if it never falls."""
    slopes = [(smoothed[n + 1] - smoothed[n]) / (math.log10(lr[n + 1]) - math.log10(lr[n])) for n in range(len(lr) - 1)]
    if not slopes or min(slopes) >= 0:
        return None
    return lr[slopes.index(min(slopes)) + 1]


def save(run: Path, name: str, found: dict[str, Any]) -> None:
    run.mkdir(parents=True, exist_ok=True)
    (run / f"{LR_RANGE}.json").write_text(json.dumps(found, indent=1))
    lines = {"loss": (found["lr"], found["loss"]), "smoothed": (found["lr"], found["smoothed"])}
    svg = curves_svg(f"Learning-rate range test: {name}", "learning rate", lines, y_label="loss", log_x=True)
    (run / f"{LR_RANGE}.svg").write_text(svg)


def crf_ratio(
    *, classes: int = 21, shown: int = 2, height: int = 375, width: int = 500, images: int = 3, seed: int = 0
) -> dict[str, Any]:
    """How many times as fast the CRF is on background and the proposed classes alone, and what that changes.

    On images of noisy regions whose first `shown` classes the model is fairly sure of, with ToCo's settings for
    segmentation, both ways in turn on one core.

    Returns:
        {"classes", "proposed": mean number, "all_s", "proposed_s": seconds per image, "ratio",
        "agreement": share of pixels with the same class, "moved": mean over pixels of sum_c |dQ_c| / 2,
        "left_out": mean mass of the classes that are not proposed}
    """
    rng, options = np.random.default_rng(seed), MeanFieldConfig().model_dump()
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
        found["left_out"].append(float(1 - probs_CHW[chosen].sum(0).mean()))
        found["agreement"].append(float((every_CHW.argmax(0) == few_CHW.argmax(0)).mean()))
        found["moved"].append(float(np.abs(every_CHW - few_CHW).sum(0).mean() / 2))
    means = {name: float(np.mean(values)) for name, values in found.items()}
    return {"classes": classes, **means, "ratio": means["all_s"] / means["proposed_s"]}


def crf_scene(
    rng: np.random.Generator, classes: int, shown: int, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """An image of flat noisy regions, and (classes, H, W) probabilities of a coarse and unsure segmentation of it."""
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
