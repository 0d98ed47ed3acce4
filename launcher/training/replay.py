"""`wsss replay RUN --step N`: computes one step of a run again, exactly, and prints everything about it.

The newest checkpoint before the step is loaded, the steps between are trained and not saved, and the step itself is run
without an update, each rank on its own samples, with every operation watched. The number of processes is that of the
run, so that the arithmetic is the same, bit for bit."""

import math
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate.utils import gather_object
from torch import nn

from launcher.config.whole import Config
from launcher.errors import RunError, report_user_errors
from launcher.processes import group
from launcher.processes.accelerator import make_accelerator
from launcher.processes.group import leaving_group
from launcher.processes.launch import read_arguments
from launcher.progress import Progress
from launcher.run import steps
from launcher.run.folder import Run
from launcher.tracking.protocol import NoTracker
from launcher.tracking.tracker import read_metrics
from launcher.training.go_on import refuse_lost_beginning
from launcher.training.inputs import Inputs
from launcher.training.nonfinite import list_keys
from launcher.training.run import build_method_and_optimizer, make_trainer
from launcher.training.update import Update
from launcher.training.watch import Watch, find_nonfinite
from launcher.training.window import LossWindow
from shards.batches.batch import Batch


def read_settings(run: Run) -> tuple[Config, int]:
    """A run's config with the number of processes that trained it, and this number."""
    processes = int(run.about["processes"])
    launch = run.config.launch.model_copy(update={"processes": processes})
    return run.config.model_copy(update={"launch": launch}), processes


def replay_here(run: Path, step: int, rank: int | None = None) -> None:
    """Repeat a step and print what it did. Called by every process.

    Args:
        step: 1-based, as in metrics.jsonl.
        rank: the rank whose report is printed; None = all.

    Raises:
        RunError: the run has no such step, it is a fork and no checkpoint before it is left, or a step before it is not
            finite.
    """
    config, processes = read_settings(Run(run))
    if step > config.train.steps:
        raise RunError(f"{run}: has steps 1 to {config.train.steps}, not {step}")
    accelerator = make_accelerator(config, processes=processes)
    found = group.from_first_rank(find_checkpoint_before(run, step), accelerator)
    if found is None:
        refuse_lost_beginning(run, step)
    inputs = Inputs(config)
    method, optimizer = build_method_and_optimizer(inputs, accelerator)
    trainer = make_trainer(inputs, accelerator, method, optimizer, resume_from=found, tracker=NoTracker())
    trainer.begin()
    begun_at = trainer.step
    batches = trainer.batches_from(begun_at)
    main = accelerator.is_main_process
    with Progress(step - 1, "to the step", "step", initial=begun_at, enabled=main) as progress:
        while trainer.step < step - 1:
            trainer.train_step(batches)
            trainer.step += 1
            progress.advance()
    account = "\n".join(repeat_step(trainer.update, batches, trainer.step))
    means = trainer.update.window.means(accelerator)
    if main:
        print(f"step {step} of {run}, {processes} processes, trained again from step {begun_at}; no update is made")
    for number, text in enumerate(gather_object([account])):
        if main and rank in (None, number):
            print(text)
    if main:
        print("\n".join(compare_with_log(means, run, step, config.train.log_every)), flush=True)


def find_checkpoint_before(run: Path, step: int) -> Path | None:
    """The newest intact checkpoint from which a step can be reached; None = start from the beginning."""
    found = [folder for folder in steps.checkpoints(run) if steps.step_number(folder) < step]
    return next((folder for folder in reversed(found) if steps.find_damage(folder) is None), None)


def repeat_step(update: Update, batches: Iterator[Batch], step: int) -> list[str]:
    """Run a step on this rank alone, without an update; returns the report about it."""
    method, accelerator = update.plain_method, update.accelerator
    update.prepare(step)
    update.window = LossWindow()
    method.zero_grad(set_to_none=True)
    lines = [f"rank {accelerator.process_index}:"]
    lines += [f"  {name} is not finite before the step" for name in find_nonfinite(method.state_dict().items())]
    watch = Watch(method)
    for batch in update.micro_batches(batches):
        lines += [f"  batch['{name}'] is not finite" for name in find_nonfinite(batch.items())]
        with torch.autograd.set_detect_anomaly(True, check_nan=False), watch:
            with update.precision():
                losses = method(batch, step)
            update.backward(losses["loss"])
        update.note(step, batch["key"], losses)
    for micro in update.window.unchecked:
        lines.append("  losses: " + ", ".join(f"{name} {value.item():.9g}" for name, value in micro.losses.items()))
        lines.append(f"  samples: {list_keys(micro.keys)}")
    if update.loss_scale:
        update.loss_scale.down(update.parameters)
    norms = measure_gradients(method)
    lines.append("  gradient norms, of this rank alone: " + ", ".join(f"{n} {v:.6g}" for n, v in norms.items()))
    lines += [f"  first {kind}: {where}" for kind, where in watch.first.items()] or ["  no NaN, no infinity anywhere"]
    return lines


def measure_gradients(method: nn.Module) -> dict[str, float]:
    """Norm of the gradient of each part (the first two names of its parameters), and of everything."""
    squares: dict[str, float] = defaultdict(float)
    for name, parameter in method.named_parameters():
        if parameter.grad is not None:
            square = float(parameter.grad.double().square().sum())
            squares[".".join(name.split(".")[:2])] += square
            squares["all"] += square
    return {name: math.sqrt(square) for name, square in squares.items()}


def compare_with_log(means: dict[str, float], run: Path, step: int, log_every: int) -> Iterator[str]:
    """The step's mean losses, and whether they are those that the run logged, where it logged every step."""
    yield "mean losses: " + ", ".join(f"{name} {value:.9g}" for name, value in means.items())
    logged = [line for line in read_metrics(run) if line["step"] == step and "train/loss" in line]
    if log_every == 1 and logged:
        same = all(logged[-1].get(f"train/{name}") == value for name, value in means.items())
        yield "as logged, bit for bit" if same else f"NOT as logged: {logged[-1]}"


if __name__ == "__main__":
    with report_user_errors(), leaving_group():
        replay_here(**read_arguments(sys.argv))
