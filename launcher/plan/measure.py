"""A probe: the same step on this machine's device, on random images."""

import torch

from launcher.bench.stage import Stage, on
from launcher.config.whole import Config
from launcher.plan.estimate import GIB, Plan, look_at_data
from launcher.plan.step import build_untrained, make_batch
from launcher.training.graph import is_recorded

WARM = 3


def measure(plan: Plan, config: Config, steps: int) -> None:
    """Replace the estimated time and, on a GPU, memory by those of real steps."""
    device = torch.device("cuda" if torch.cuda.is_available() and config.launch.device != "cpu" else "cpu")
    stage, (class_set, *_) = Stage(device), look_at_data(config, [])
    torch.manual_seed(0)
    method = build_untrained(config, class_set).to(device)
    batch = make_batch(config, method, plan.images, class_set.num_fg_classes, stage)
    graph = is_recorded(
        config.train, method, device=device.type, processes=plan.processes, zero=config.launch.zero != 0
    )
    update = stage.update(method, on(device, batch), config.train.precision, graph=graph)
    found = stage.clock(update, steps, WARM)
    step_s = found["ms"] * config.train.accumulate / 1e3
    plan.step_s, plan.measured = (step_s, step_s), True
    if "peak_gib" in found:
        plan.memory = {"measured peak": int(found["peak_gib"] * GIB)}
    where = torch.cuda.get_device_name() if stage.cuda else "CPU"
    plan.assumed.append(
        f"a step is the median of {steps} on this {where}, of random images and weights, times train.accumulate; other "
        "processes cost nothing"
    )
