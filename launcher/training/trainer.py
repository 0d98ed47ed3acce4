"""The training loop. It knows losses, steps and time, and nothing of the science."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from launcher.config.sections import TrainConfig
from launcher.errors import RunError
from launcher.processes import zero
from launcher.processes.buffers import equalise_buffers
from launcher.processes.group import any_rank, gather_ranks, sum_ranks
from launcher.processes.precision import in_precision
from launcher.progress import Progress
from launcher.run import checkpoint, steps
from launcher.tracking.protocol import Tracker
from launcher.training.average import Average
from launcher.training.gauges import Gauges
from launcher.training.gradients import SharedGradient, clip_gradients, poison_gradient, seed_step
from launcher.training.graph import Gradient, GraphedGradient, is_recorded
from launcher.training.loss_scale import LossScale
from launcher.training.nonfinite import Micro, NotFinite, explain_nonfinite, replay_command
from launcher.training.skips import Skips
from launcher.training.unread import refuse_unread
from launcher.training.window import LossWindow
from shards.batches.batch import Batch, to_device
from wsss.methods.base import Method


class Trainer:
    """Steps from a checkpoint to the last step.

    Args:
        run: the run's folder, for checkpoints.
        resume_from: the checkpoint to go on from (see steps.newest_good); None = begin at step 0.
        batches_from: step -> endless micro-batches of this rank from that step on, `accumulate` per step.
        lr_at: step (0-based) -> learning rate.
        evaluate: step -> figures on rank 0 (None: does not exist), {} elsewhere; called by all ranks; None = never.
        show_untrained: called by all ranks before the first step of a run that is begun; None = never.
        asked_to_stop: has this process been asked to stop? All ranks then stop after the same step.
        global_batch_size: images per step, for the rate.
        skips: counts damaged samples; None = there can be none.
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
        lr_at: Callable[[int], float],
        batches_from: Callable[[int], Iterator[Batch]],
        evaluate: Callable[[int], Mapping[str, float | None]] | None,
        show_untrained: Callable[[], None] | None = None,
        asked_to_stop: Callable[[], bool] = lambda: False,
        tracker: Tracker,
        global_batch_size: int,
        skips: Skips | None = None,
    ) -> None:
        self.config = config
        self.run = run
        self.resume_from = resume_from
        self.accelerator = accelerator
        self.average = Average(method, config.ema_decay, accelerator.device) if config.ema_decay else None
        self.plain_method = method  # accelerator.unwrap_model would do, but imports DeepSpeed for seconds
        self.parameters = [p for p in method.parameters() if p.requires_grad]
        ranks, device, zeroed = accelerator.num_processes, accelerator.device.type, zero.uses_zero(accelerator)
        recorded = is_recorded(config, method, device=device, processes=ranks, zero=zeroed)
        at_once = not zeroed and (recorded or device == "cpu" or config.deterministic)
        self.method, self.optimizer = zero.prepare(accelerator, method, optimizer, wrap=not at_once)
        self.shared = SharedGradient(self.parameters) if at_once and ranks > 1 else None
        self.gradient: Gradient = self.losses_and_gradient
        if recorded:
            self.gradient = GraphedGradient(self.losses_and_gradient, method.phase)
        self.lr_at = lr_at
        self.batches_from = batches_from
        self.evaluate = evaluate
        self.show_untrained = show_untrained
        self.asked_to_stop = asked_to_stop
        self.tracker = tracker
        self.global_batch_size = global_batch_size
        self.skips = skips or Skips(run, 0, accelerator)
        self.step = 0
        self.is_first = True  # no step was made yet
        self.bad_step = torch.zeros((), device=accelerator.device)  # first step (1-based) that was not finite, or 0
        self.loss_scale: LossScale | None = None
        self.window = LossWindow()
        self.gauges = Gauges(accelerator.device)

    def fit(self) -> bool:
        """Train to the last step, or until asked to stop; returns whether the last step is done.

        Raises:
            RunError: a loss or gradient stopped being finite, or a checkpoint could not be written.
        """
        self.begin()
        done_before = self.step == self.config.steps and self.resume_from is not None
        if self.resume_from is None and self.step < self.config.steps and self.show_untrained is not None:
            self.show_untrained()
            self.gauges.leave_out()
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
            print(f"{self.run}: all {self.step} steps were done already")
        return True

    def is_due(self, every: int | None) -> bool:
        """Is it time, after this step? Always at the last one."""
        return self.step == self.config.steps or bool(every and self.step % every == 0)

    def is_evaluation_due(self) -> bool:
        return self.evaluate is not None and self.is_due(self.config.eval_every)

    def must_stop(self) -> bool:
        """Has any rank been asked to stop? All get the same answer, since all ask after the same steps."""
        return any_rank(self.asked_to_stop())

    def train_step(self, batches: Iterator[Batch]) -> None:
        """One optimizer update from `accumulate` micro-batches, without waiting for the device."""
        self.prepare_step()
        for micro, batch in enumerate(self.micro_batches(batches)):
            self.skips.collect(batch)
            last = micro + 1 == self.config.accumulate
            with zero.accumulating(self.accelerator, self.method, last=last):
                losses = self.gradient(batch, self.step)
            self.note(batch["key"], losses)
        if self.shared:
            self.shared.average()
        if self.loss_scale:
            self.loss_scale.down(self.parameters)
        self.guard(clip_gradients(self.optimizer, self.parameters, self.config.max_grad_norm))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=not (self.shared or isinstance(self.gradient, GraphedGradient)))
        with torch.no_grad():
            self.plain_method.synchronise(gather_ranks)
        if self.average:
            self.average.follow(self.plain_method, self.optimizer.optimizer.found_inf if self.loss_scale else None)
        if self.accelerator.device.type == "cpu":
            self.stop_if_not_finite()

    def losses_and_gradient(self, batch: Batch, step: int) -> dict[str, Tensor]:
        with self.precision():
            losses = self.method(batch, step)
        if self.is_first:  # of this process: before DDP or ZeRO waits for gradients that never come
            refuse_unread(self.plain_method, losses["loss"])
            self.is_first = False
        self.backward(poison_gradient(losses["loss"]))
        return losses

    def backward(self, loss: Tensor) -> None:
        """Add a micro-batch's share of the gradient."""
        share = loss / self.config.accumulate
        self.accelerator.backward(self.loss_scale.up(share) if self.loss_scale else share)

    def precision(self) -> AbstractContextManager:
        """Of the forward pass; DeepSpeed's engine enters its own (see zero_settings)."""
        zeroed = zero.uses_zero(self.accelerator)
        return nullcontext() if zeroed else in_precision(self.config.precision, self.accelerator.device.type)

    def micro_batches(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The micro-batches of a step on the device, with the totals of the step where the method counts something."""
        device, accumulate = self.accelerator.device, self.config.accumulate
        if type(self.plain_method).counts is Method.counts:
            yield from (to_device(self.gauges.next_batch(batches), device) for _ in range(accumulate))
            return
        # the totals of a step are known before its first loss
        of_step = [self.gauges.next_batch(batches) for _ in range(accumulate)]
        counts = [self.plain_method.counts(batch) for batch in of_step]
        mine = torch.stack([torch.stack([of_batch[name] for of_batch in counts]).sum() for name in counts[0]])
        totals = dict(zip(counts[0], sum_ranks(mine).to(device, non_blocking=True), strict=True))
        shares = accumulate * self.accelerator.num_processes
        yield from ({**to_device(batch, device), "totals": totals, "shares": shares} for batch in of_step)

    def prepare_step(self) -> None:
        """Set all that depends on the number of the step alone."""
        seed_step(self.config.seed, self.step, self.accelerator.process_index)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr_at(self.step) * group.get("lr_factor", 1.0)
        self.method.train()

    def guard(self, grad_norm: Tensor) -> None:
        """Forbid this and all further updates from the first gradient on that is not finite.

        Gradients are equal on all ranks here, so all ranks decide alike. The fused optimizer skips the update
        on the device; the host looks when it logs, and finds the weights of the last good step.
        """
        left_out = bad = ~torch.isfinite(grad_norm)
        if self.loss_scale:  # an overflow costs this update alone
            bad = self.loss_scale.follow(bad, self.accelerator.reduce)
        self.bad_step = torch.where(bad & (self.bad_step == 0), float(self.step + 1), self.bad_step)
        self.optimizer.optimizer.found_inf = (left_out | (self.bad_step > 0)).float()

    def stop_if_not_finite(self) -> None:
        """Raises RunError on all ranks if a step since the last look was not finite."""
        seen, self.window.unchecked = self.window.unchecked, []
        if bad_step := int(self.bad_step.item()):
            said = explain_nonfinite(bad_step, seen, self.run, self.accelerator)
            raise NotFinite(said, replay_command(self.run, bad_step))

    def note(self, keys: list[str], losses: dict[str, Tensor]) -> None:
        """Keep the losses of a micro-batch until the next log."""
        values = {name: value.detach().float() for name, value in losses.items()}
        self.window.add(Micro(self.step + 1, list(keys), values))
        if self.loss_scale:
            self.loss_scale.see(values["loss"])

    def log(self) -> str:
        """Send the mean losses of the steps since the last log; the one place where the host waits for the device."""
        self.stop_if_not_finite()
        means = self.window.means(self.accelerator)
        steps = self.window.batches // self.config.accumulate
        took = self.gauges.read(steps, images=steps * self.global_batch_size)
        self.window = LossWindow()
        metrics = {f"train/{name}": value for name, value in means.items()}
        metrics |= self.skips.count(self.step)
        metrics |= {"train/lr": self.lr_at(self.step - 1), **took}
        if self.loss_scale:
            scale, _, left_out = self.loss_scale.state.tolist()
            metrics |= {"train/loss_scale": scale, "train/updates_left_out": left_out}
        self.tracker.log(metrics, self.step)
        return f"loss {metrics['train/loss']:.4f}, {took['train/images_per_s']:.1f} images/s"

    def run_evaluation(self) -> None:
        if self.evaluate is not None:
            self.gather_full(moments=False)
            with self.average.in_place_of(self.plain_method) if self.average else nullcontext():
                figures = self.evaluate(self.step)
            self.gauges.leave_out()  # evaluation is not training time
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
        self.stop_if_not_finite()
        self.skips.count(self.step)  # a run that goes on from here does not meet these samples again
        started = time.perf_counter()
        self.gather_full(moments=True)
        checkpoint.save(
            self.run,
            self.step,
            self.plain_method,
            self.optimizer,
            self.accelerator,
            average=self.average.method if self.average else None,
            ema_decay=self.config.ema_decay,
            keep=self.config.keep,
            keep_best=self.config.keep_best,
        )
        stall_s = time.perf_counter() - started
        self.tracker.log({"train/save_s": stall_s}, self.step)
        self.gauges.leave_out(stall_s)

    def gather_full(self, *, moments: bool) -> None:
        """See zero.gather_full; the average's buffers too."""
        zero.gather_full(self.optimizer, self.plain_method, moments=moments)
        if self.average:
            equalise_buffers(self.average.method)

    def begin(self) -> None:
        """Resume, if there is a checkpoint; a scale of the loss is part of it."""
        self.resume()
        if self.config.precision == "fp16":
            self.loss_scale = LossScale(self.optimizer, self.accelerator.device)

    def resume(self) -> None:
        """Load the checkpoint to go on from, and evaluate it if the run ended before it did."""
        if self.resume_from is None:
            return
        if self.accelerator.is_main_process:
            print(f"resuming from {self.resume_from}", flush=True)
        average = self.average.method if self.average else None
        self.step = checkpoint.load(self.resume_from, self.plain_method, self.optimizer, average)
        if self.step and self.is_evaluation_due() and not steps.read_figures(self.resume_from):
            self.run_evaluation()
