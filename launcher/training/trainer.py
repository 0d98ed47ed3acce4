"""The training loop: what happens between the updates of a run, and when. It knows nothing about the method."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator

from launcher.config.sections import TrainConfig
from launcher.errors import RunError
from launcher.processes import zero
from launcher.processes.buffers import equalise_buffers
from launcher.processes.group import any_rank
from launcher.progress import Progress
from launcher.run import checkpoint, steps
from launcher.tracking.protocol import Tracker
from launcher.training.skips import Skips
from launcher.training.update import Update, rate_of
from shards.batches.batch import Batch
from wsss.methods.base import Method


class Trainer:
    """Steps from a checkpoint to the last step.

    Args:
        run: the run's folder, for checkpoints.
        resume_from: the checkpoint to go on from (see steps.newest_good); None = begin at step 0.
        batches_from: step -> endless micro-batches of this rank from that step on, `accumulate` per step.
        evaluate: step -> metrics on rank 0 (None: has no value), {} on other ranks; called by all ranks; None = never.
        show_untrained: called by all ranks before the first step of a run that is begun; None = never.
        asked_to_stop: whether this process has been asked to stop; all ranks then stop after the same step.
        global_batch_size: images per step, for the rate.
        skips: counts damaged samples.
    """

    def __init__(
        self,
        *,
        config: TrainConfig,
        run: Path,
        resume_from: Path | None,
        accelerator: Accelerator,
        method: Method,
        optimizer: torch.optim.Optimizer,
        batches_from: Callable[[int], Iterator[Batch]],
        evaluate: Callable[[int], Mapping[str, float | None]] | None,
        show_untrained: Callable[[], None] | None = None,
        asked_to_stop: Callable[[], bool] = lambda: False,
        tracker: Tracker,
        global_batch_size: int,
        skips: Skips,
    ) -> None:
        self.config = config
        self.run = run
        self.resume_from = resume_from
        self.accelerator = accelerator
        self.skips = skips
        self.update = Update(
            config=config,
            run=run,
            accelerator=accelerator,
            method=method,
            optimizer=optimizer,
            skips=skips,
        )
        self.batches_from = batches_from
        self.evaluate = evaluate
        self.show_untrained = show_untrained
        self.asked_to_stop = asked_to_stop
        self.tracker = tracker
        self.global_batch_size = global_batch_size
        self.step = 0

    def fit(self) -> bool:
        """Train to the last step, or until asked to stop; returns whether the last step is done.

        Raises:
            RunError: a loss or gradient stopped being finite, or a checkpoint could not be written.
        """
        self.begin()
        done_before = self.step == self.config.steps and self.resume_from is not None
        if self.resume_from is None and self.step < self.config.steps and self.show_untrained is not None:
            self.show_untrained()
            self.update.gauges.leave_out()
        batches = self.batches_from(self.step) if self.step < self.config.steps else iter(())
        with Progress(
            self.config.steps, "train", "step", initial=self.step, enabled=self.accelerator.is_main_process
        ) as progress:
            while self.step < self.config.steps:
                self.train_step(batches)
                self.step += 1
                note = self.log() if self.is_due(self.config.log_every) else ""
                stopping = self.must_stop()
                if (
                    stopping
                    or self.is_due(self.config.save_every)
                    or (self.config.keep_best and self.is_evaluation_due())
                ):
                    self.save()
                if stopping and self.step < self.config.steps:
                    self.skips.print_summary()
                    return False  # an evaluation that is due comes after the next start
                if self.is_evaluation_due():
                    self.run_evaluation()
                progress.advance(note=note)
        self.skips.print_summary()
        if self.step == 0:  # the untrained control: its checkpoint and its figures
            self.save()
            self.run_evaluation()
        elif done_before and self.accelerator.is_main_process:
            print(f"{self.run}: all {self.step} steps are already done")
        return True

    def is_due(self, every: int | None) -> bool:
        """Whether something is due after this step; always after the last one."""
        return self.step == self.config.steps or bool(every and self.step % every == 0)

    def is_evaluation_due(self) -> bool:
        return self.evaluate is not None and self.is_due(self.config.eval_every)

    def must_stop(self) -> bool:
        """Whether any rank has been asked to stop. All get the same answer, since all ask after the same steps."""
        return any_rank(self.asked_to_stop())

    def train_step(self, batches: Iterator[Batch]) -> None:
        """One update, without waiting for the device."""
        self.update(batches, self.step)

    def log(self) -> str:
        """Send the mean losses of the steps since the last log; the only place where the host waits for the device."""
        self.update.stop_if_not_finite()
        metrics = self.update.read_window(self.global_batch_size) | self.skips.count(self.step)
        metrics["train/lr"] = rate_of(self.config, self.step - 1)
        self.tracker.log(metrics, self.step)
        return f"loss {metrics['train/loss']:.4f}, {metrics['train/images_per_s']:.1f} images/s"

    def run_evaluation(self) -> None:
        if self.evaluate is not None:
            self.gather_full(moments=False)
            with self.update.average.in_place_of(self.update.plain_method) if self.update.average else nullcontext():
                figures = self.evaluate(self.step)
            self.update.gauges.leave_out()  # evaluation is not training time
            if self.accelerator.is_main_process:
                self.record_figures(figures)

    def record_figures(self, figures: Mapping[str, float | None]) -> None:
        """Write them to the checkpoint of this step, if there is one, and see whether it is the best."""
        best = self.config.keep_best
        if best is not None and best not in figures:
            raise RunError(f"train.keep_best: evaluation gave no metric '{best}'; it gave {', '.join(sorted(figures))}")
        if (folder := steps.folder_of(self.run, self.step)).is_dir():
            steps.write_figures(folder, figures)
            checkpoint.prune(self.run, keep=self.config.keep, keep_best=best)

    def save(self) -> None:
        self.update.stop_if_not_finite()
        self.skips.count(self.step)  # a run that goes on from here does not meet these samples again
        started = time.perf_counter()
        self.gather_full(moments=True)
        checkpoint.save(
            self.run,
            self.step,
            self.update.plain_method,
            self.update.optimizer,
            self.accelerator,
            average=self.update.average.method if self.update.average else None,
            ema_decay=self.config.ema_decay,
            keep=self.config.keep,
            keep_best=self.config.keep_best,
        )
        stall_s = time.perf_counter() - started
        self.tracker.log({"train/save_s": stall_s}, self.step)
        self.update.gauges.leave_out(stall_s)

    def gather_full(self, *, moments: bool) -> None:
        """Make the buffers equal on all ranks and, for a save, the optimizer's moments whole. All must call it."""
        equalise_buffers(self.update.plain_method)
        if moments and isinstance(self.update.optimizer, zero.ZeroOptimizer):
            self.update.optimizer.gather()
        if self.update.average:
            equalise_buffers(self.update.average.method)

    def begin(self) -> None:
        """Resume, if there is a checkpoint."""
        self.resume()
        self.update.begin()

    def resume(self) -> None:
        """Load the checkpoint to continue from, and evaluate it if the run ended before doing so."""
        if self.resume_from is None:
            return
        if self.accelerator.is_main_process:
            print(f"resuming from {self.resume_from}", flush=True)
        average = self.update.average.method if self.update.average else None
        self.step = checkpoint.load(self.resume_from, self.update.plain_method, self.update.optimizer, average)
        if self.step and self.is_evaluation_due() and not steps.read_figures(self.resume_from):
            self.run_evaluation()
