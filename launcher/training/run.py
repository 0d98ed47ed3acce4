"""One training: config -> objects -> Trainer.fit."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from timm.layers import convert_sync_batchnorm  # torch's own drops the activations of BatchNormAct2d

from launcher.config.sections import TrainConfig
from launcher.config.whole import Config
from launcher.errors import ConfigError, user_error_as, without_traceback
from launcher.evaluation.validate import choose_judge, headline_names, make_validator, show_untrained
from launcher.processes.accelerator import joins_norms, make_accelerator
from launcher.processes.buffers import refuse_unequal_state
from launcher.processes.precision import name_emulation
from launcher.processes.signals import Stopped, WaitsInVain, stop_on_sigterm
from launcher.run import steps
from launcher.run.build import build_method
from launcher.run.failure import NotingFailure
from launcher.run.folder import run_folder
from launcher.run.idle import name_idle, name_unreached
from launcher.run.lock import only_writer
from launcher.run.log import keep_log
from launcher.run.provenance import collect_provenance
from launcher.tracking.protocol import NoTracker, Tracker
from launcher.training.average import name_beginning
from launcher.training.begin import begin_run, offer_model
from launcher.training.ending import describe_end
from launcher.training.go_on import refuse_lost_beginning
from launcher.training.inputs import Inputs
from launcher.training.memory import memory_explained
from launcher.training.preflight import check_begun, check_share
from launcher.training.skips import Skips
from launcher.training.trainer import Trainer
from launcher.training.unread import name_origins, name_unread
from shards.batches.waiting import expect_processes, waited_s
from wsss.methods.base import Method
from wsss.optim import parameter_groups

READ = ("data", "method", "train", "launch", "cam", "evaluate", "tracking")  # sections that a training reads


def train(config: Config, said: Sequence[str] = ()) -> Method:
    """Train a run to its end, from its last checkpoint if it has one. Called by every process.

    Args:
        said: what the user typed: the config's file and the overrides.

    Returns:
        The trained method, not wrapped.

    Raises:
        ConfigError, DataError, RunError: something that the user can fix, nearly always before the first step.
        Stopped: after SIGTERM: either all ranks have stopped after the same step with a checkpoint, or this one was
            waiting for a batch that did not arrive.
    """
    run, began = run_folder(config), time.monotonic()
    inputs = Inputs(config)
    inputs.check()
    accelerator = make_accelerator(config, processes=config.launch.processes)
    expect_processes(config.data.workers)
    main = accelerator.is_main_process
    with (
        only_writer(run) if main else nullcontext(),
        keep_log(run) if main else nullcontext(),
        NotingFailure(run, accelerator.process_index) as failure,
        stop_on_sigterm(waited_s) as asked_to_stop,
    ):
        inputs.compare_masks(rank=accelerator.process_index, ranks=accelerator.num_processes)
        found = steps.newest_good(run, accelerator)
        if found is None:
            refuse_lost_beginning(run, 1)
        method, optimizer = build_method_and_optimizer(inputs, accelerator)
        if main:
            lines = name_remarks(method, config, accelerator.device, begins=found is None)
            print("".join(f"{line}\n" for line in lines if line), end="", flush=True)
        about = collect_provenance(inputs.train, inputs.learns_from, accelerator.num_processes)
        judge, headlines = None, {}
        if inputs.val is not None:
            judge = choose_judge(method, inputs.val.index.supervision)(config, method, inputs.val, accelerator)
            headlines = headline_names(judge, judge.known_figures(config, inputs.class_set))
        tracker = begin_run(inputs, about, found, said, headlines) if main else NoTracker()
        with closing_with_reason(tracker) as ended, memory_explained(config, failure):
            validate = show = None
            if inputs.val is not None and judge is not None:
                judged = (judge, config, inputs.val, accelerator, tracker)
                validate, show = make_validator(*judged), partial(show_untrained, *judged)
            trainer = make_trainer(
                inputs,
                accelerator,
                method,
                optimizer,
                resume_from=found,
                tracker=tracker,
                evaluate=validate,
                show_untrained=show,
                asked_to_stop=asked_to_stop,
            )
            failure.step = lambda: trainer.step
            ended.status = fit(trainer, run)
            if main and ended.status == "FINISHED" and config.tracking.model is not None:
                offer_model(config, tracker)
        if main and ended.status == "FINISHED":
            print(describe_end(config, time.monotonic() - began, inputs.teacher), flush=True)
    if ended.status == "KILLED":
        raise Stopped(f"{run}: stopped after step {trainer.step} as requested; run the same command to resume")
    return method


def name_remarks(method: Method, config: Config, device: torch.device, *, begins: bool) -> list[str]:
    """What a user should know before the first step, a line each; '' where there is nothing to say.

    Args:
        begins: whether the run starts, and does not go on from a checkpoint.
    """
    return [
        name_unread(method),
        *(name_origins(method) if begins else []),
        name_beginning(config.train.ema_decay, config.train.steps),
        name_unreached(config),
        name_idle(config, *READ),
        name_emulation(config.train.precision, device),
    ]


@dataclass
class Ended:
    """How a training ended, in a tracker's words: FINISHED, KILLED or FAILED, and why it failed."""

    status: str = "FAILED"
    reason: str | None = None


@contextmanager
def closing_with_reason(tracker: Tracker) -> Iterator[Ended]:
    """Context in which a training sets how it ended; afterwards this is reported to the tracker, with the reason of an
    exception."""
    ended = Ended()
    try:
        yield ended
    except Stopped:
        ended.status = "KILLED"
        raise
    except Exception as error:
        ended = Ended(reason=f"{type(error).__name__}: {without_traceback(str(error))}")
        raise
    finally:
        tracker.close(ended.status, ended.reason)


def fit(trainer: Trainer, run: Path) -> str:
    """Trainer.fit; returns FINISHED, or KILLED if it was asked to stop. Raises Stopped if it was then waiting for a
    batch that did not arrive."""
    try:
        return "FINISHED" if trainer.fit() else "KILLED"
    except WaitsInVain as vain:
        raise Stopped(
            f"{run}: asked to stop while waiting for a batch that did not arrive after step {trainer.step}: ended "
            "without a new checkpoint; run the same command to resume from the last one"
        ) from vain


def build_method_and_optimizer(inputs: Inputs, accelerator: Accelerator) -> tuple[Method, torch.optim.AdamW]:
    """The method with its initial weights, equal on all ranks, and its optimizer.

    Raises:
        ConfigError: the method cannot learn from the number of images that a process has at a time.
    """
    config = inputs.config
    torch.manual_seed(config.train.seed)
    method = build_method(config, inputs.class_set, inputs.teacher)
    check_begun(method)
    with user_error_as(ConfigError):
        check_share(config, method, accelerator.num_processes)
    if joins_norms(config, accelerator.num_processes):
        method = convert_sync_batchnorm(method)
    refuse_unequal_state(method, accelerator.num_processes)
    return method, torch.optim.AdamW(make_groups(method, config.train), lr=config.train.lr, fused=True)


def make_groups(method: Method, train: TrainConfig) -> list[dict]:
    """See parameter_groups.

    Raises:
        ConfigError: a layer_decay where there are no layers, a head_lr_factor where no classifier is trained.
    """
    with user_error_as(ConfigError):
        return parameter_groups(
            method,
            train.weight_decay,
            decay_all=train.decay_all,
            new_lr_factor=train.new_lr_factor,
            head_lr_factor=train.head_lr_factor,
            layer_decay=train.layer_decay,
        )


def make_trainer(
    inputs: Inputs,
    accelerator: Accelerator,
    method: Method,
    optimizer: torch.optim.Optimizer,
    *,
    resume_from: Path | None,
    tracker: Tracker,
    evaluate: Callable[[int], Mapping[str, float | None]] | None = None,
    show_untrained: Callable[[], None] | None = None,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> Trainer:
    """The trainer of a run, for `wsss train` and `wsss replay`."""
    config = inputs.config
    return Trainer(
        config=config.train,
        run=run_folder(config),
        resume_from=resume_from,
        accelerator=accelerator,
        method=method,
        optimizer=optimizer,
        batches_from=partial(inputs.batches_from, rank=accelerator.process_index, ranks=accelerator.num_processes),
        tracker=tracker,
        evaluate=evaluate,
        show_untrained=show_untrained,
        asked_to_stop=asked_to_stop,
        global_batch_size=config.data.global_batch_size,
        skips=Skips(run_folder(config), config.data.max_skipped, accelerator),
    )
