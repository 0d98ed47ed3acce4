"""`wsss bench lr-range`: what learning rate a method takes, measured before a run."""

import json
import math
from pathlib import Path
from typing import Any

import torch

from launcher.config.sections import Config
from launcher.evaluation.pictures import plot_curves
from launcher.files import write_whole
from launcher.processes.accelerator import uses_cpu
from launcher.processes.group import gather_ranks
from launcher.run.build import build_method
from launcher.run.folder import run_folder
from launcher.training.inputs import Inputs
from launcher.training.trainer import seed_step
from shards.batches.batch import to_device
from wsss.optim import parameter_groups

LR_RANGE = "lr_range"


def lr_range(config: Config, *, low: float = 1e-7, high: float = 1.0, steps: int = 100) -> dict[str, Any]:
    """Learning-rate range test: train from the start while the rate grows exponentially, and watch the loss.

        lr_t = low (high / low)^(t / (steps - 1)),   smoothed_t = (sum_i 0.9^(t-i) loss_i) / (sum_i 0.9^(t-i))

    It ends early when the smoothed loss exceeds four times its minimum. The suggested rate is the one where the
    smoothed loss falls fastest per decade. Writes RUN/lr_range.json and lr_range.svg; no checkpoint, nothing that a
    training of the run would go on from.

    Returns:
        {"lr": [...], "loss": [...], "smoothed": [...], "suggested": lr}

    Source: Smith 2017; smoke paper, section 4.2 (1e-7 to 100 in 100 steps, chose 1e-4).
    """
    device = torch.device("cpu" if uses_cpu(config) else "cuda")
    inputs = Inputs(config)
    torch.manual_seed(config.train.seed)
    method = build_method(config, inputs.class_set, inputs.teacher).to(device).train()
    optimizer = torch.optim.AdamW(parameter_groups(method, config.train.weight_decay), lr=low)
    batches = inputs.batches_from(0)
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
        with torch.no_grad():
            method.synchronise(gather_ranks)
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
    write_whole(run / f"{LR_RANGE}.json", json.dumps(found, indent=1))
    lines = {"loss": (found["lr"], found["loss"]), "smoothed": (found["lr"], found["smoothed"])}
    svg = plot_curves(f"Learning-rate range test: {name}", "learning rate", lines, y_label="loss", log_x=True)
    write_whole(run / f"{LR_RANGE}.svg", svg)
