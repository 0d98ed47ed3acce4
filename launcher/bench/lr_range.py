"""`wsss bench lr-range`: which learning rate suits a method, measured before a run."""

import itertools
import json
import math
import statistics
from pathlib import Path
from typing import Any

import torch

from launcher.config.whole import Config
from launcher.evaluation.plots import Line, plot_lines
from launcher.files import write_whole
from launcher.processes.accelerator import uses_cpu
from launcher.processes.group import gather_ranks
from launcher.processes.precision import in_precision, set_precision
from launcher.run.build import build_method
from launcher.run.folder import run_folder
from launcher.training.gradients import seed_step
from launcher.training.inputs import Inputs
from launcher.training.run import make_groups
from shards.batches.batch import to_device

LR_RANGE = "lr_range"


def lr_range(config: Config, *, low: float = 1e-7, high: float = 1.0, steps: int = 100) -> dict[str, Any]:
    """Learning-rate range test: train from the start while the rate grows exponentially, and watch the loss.

        lr_t = low (high / low)^(t / (steps - 1)),   smoothed_t = (sum_i 0.9^(t-i) loss_i) / (sum_i 0.9^(t-i))

    It ends early when the smoothed loss exceeds four times its minimum. For the suggested rate see `suggest`. Writes
    RUN/lr_range.json and lr_range.svg, but no checkpoint, so that a training of the run begins from the start.

    Returns:
        {"lr": [...], "loss": [...], "smoothed": [...], "suggested": lr or None, "reason": why this one, or why none}

    Source: Smith 2017; smoke paper, section 4.2 (1e-7 to 100 in 100 steps, chose 1e-4).
    """
    device = torch.device("cpu" if uses_cpu(config) else "cuda")
    set_precision(config.train.precision)
    inputs = Inputs(config)
    torch.manual_seed(config.train.seed)
    method = build_method(config, inputs.class_set, inputs.teacher).to(device).train()
    optimizer = torch.optim.AdamW(make_groups(method, config.train), lr=low)
    batches = inputs.batches_from(0)
    found: dict[str, Any] = {"lr": [], "loss": [], "smoothed": []}
    total = weight = 0.0
    for step in range(steps):
        lr = low * (high / low) ** (step / max(steps - 1, 1))
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_factor"]
        seed_step(config.train.seed, step, 0)
        with in_precision(config.train.precision, device.type):
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
        with torch.no_grad():
            method.synchronise(gather_ranks)
    found["suggested"], found["reason"] = suggest(found["lr"], found["loss"], found["smoothed"])
    save(run_folder(config), config.name, found)
    return found


def suggest(lr: list[float], loss: list[float], smoothed: list[float]) -> tuple[float | None, str]:
    """(a tenth of the rate at which the smoothed loss was lowest before it first clearly rose, or None; why).

    Clearly means by more than four standard deviations of the smoothed loss, estimated from the median distance of
    neighbouring losses. The steepest point, which is often used, follows the noise of single batches: with AdamW it was
    a hundred times higher than rates that train (D-95).
    """
    settled = len(lr) // 5  # the first means are over few losses
    lr, loss, smoothed = lr[settled:], loss[settled:], smoothed[settled:]
    if len(lr) < 2:
        return None, "the loss was not finite from the start, or at once four times as high; lower --low"
    spread = statistics.median(abs(b - a) for a, b in itertools.pairwise(loss)) / (0.6745 * math.sqrt(2))
    clear = 4 * spread * math.sqrt(0.1 / 1.9)  # the spread of a mean with weights 0.9^n
    highest, lowest = smoothed[0], 0
    for n, value in enumerate(smoothed):
        if value < smoothed[lowest]:
            lowest = n
        elif smoothed[lowest] < highest - clear and value > smoothed[lowest] + clear:
            return lr[lowest] / 10, f"a tenth of {lr[lowest]:.1e}, where the loss was lowest before it rose"
    if smoothed[lowest] < highest - clear:
        return None, "the loss never clearly rose, so the range ends too early; raise --high"
    return None, "the loss never clearly fell; give it more --steps"


def save(run: Path, name: str, found: dict[str, Any]) -> None:
    run.mkdir(parents=True, exist_ok=True)
    write_whole(run / f"{LR_RANGE}.json", json.dumps(found, indent=1))
    lines = {name: Line(found["lr"], found[name]) for name in ("loss", "smoothed")}
    svg = plot_lines(f"Learning-rate range test: {name}", "learning rate", lines, y_label="loss", log_x=True)
    write_whole(run / f"{LR_RANGE}.svg", svg)
