"""One update of the weights from the micro-batches of a step, without waiting for the device."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from launcher.config.sections import TrainConfig
from launcher.files import typed
from launcher.processes import zero
from launcher.processes.group import gather_ranks, sum_ranks
from launcher.processes.precision import in_precision
from launcher.training.average import Average
from launcher.training.gauges import Gauges
from launcher.training.gradients import SharedGradient, clip_gradients, poison_gradient, seed_step
from launcher.training.graph import Gradient, GraphedGradient, is_recorded
from launcher.training.loss_scale import LossScale
from launcher.training.nonfinite import Micro, NotFinite, explain_nonfinite
from launcher.training.skips import Skips
from launcher.training.unread import refuse_unread
from launcher.training.window import LossWindow
from shards.batches.batch import Batch, to_device
from wsss.methods.base import Method
from wsss.optim import lr_at


class Update:
    """The update of the weights in a step. Call `begin` after a checkpoint, if any, is loaded.

    Args:
        run: the run's folder, for messages.

    Attributes:
        plain_method: the method itself; `method` is what the step calls: wrapped, if processes communicate inside it.
        average: of the weights; None = there is none.
        window: losses since the last log.
        gauges: use of the machine, see gauges.py.
        bad_step: first step (1-based) that was not finite, or 0; on the device.
    """

    def __init__(
        self,
        *,
        config: TrainConfig,
        run: Path,
        accelerator: Accelerator,
        method: Method,
        optimizer: torch.optim.Optimizer,
        skips: Skips,
    ) -> None:
        self.config, self.run, self.accelerator = config, run, accelerator
        self.skips = skips
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
        self.is_first = True  # no step was made yet
        self.bad_step = torch.zeros((), device=accelerator.device)
        self.loss_scale: LossScale | None = None
        self.window = LossWindow()
        self.gauges = Gauges(accelerator.device)

    def begin(self) -> None:
        """Create what depends on the optimizer's state, which includes the scale of the loss."""
        if self.config.precision == "fp16":
            self.loss_scale = LossScale(self.optimizer, self.accelerator.device)

    def __call__(self, batches: Iterator[Batch], step: int) -> None:
        """One optimizer update from `accumulate` micro-batches.

        Raises:
            RunError: a loss or gradient is not finite, on a CPU, where values are available at once.
        """
        self.prepare(step)
        for micro, batch in enumerate(self.micro_batches(batches)):
            self.skips.collect(batch)
            last = micro + 1 == self.config.accumulate
            with zero.accumulating(self.accelerator, self.method, last=last):
                losses = self.gradient(batch, step)
            self.note(step, batch["key"], losses)
        if self.shared:
            self.shared.average()
        if self.loss_scale:
            self.loss_scale.down(self.parameters)
        self.guard(step, clip_gradients(self.optimizer, self.parameters, self.config.max_grad_norm))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=not (self.shared or isinstance(self.gradient, GraphedGradient)))
        with torch.no_grad():
            self.plain_method.synchronise(gather_ranks)
        if self.average:
            self.average.follow(self.plain_method, self.optimizer.optimizer.found_inf if self.loss_scale else None)
        if self.accelerator.device.type == "cpu":
            self.stop_if_not_finite()

    def prepare(self, step: int) -> None:
        """Set everything that depends only on the number of the step."""
        seed_step(self.config.seed, step, self.accelerator.process_index)
        for group in self.optimizer.param_groups:
            group["lr"] = rate_of(self.config, step) * group.get("lr_factor", 1.0)
        self.method.train()

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

    def losses_and_gradient(self, batch: Batch, step: int) -> dict[str, Tensor]:
        with self.precision():
            losses = self.method(batch, step)
        if self.is_first:  # of this process: before DDP or ZeRO waits for gradients that never come
            refuse_unread(self.plain_method, losses["loss"])
            self.is_first = False
        self.backward(poison_gradient(losses["loss"]))
        return losses

    def precision(self) -> AbstractContextManager:
        """Context of the forward pass's precision; DeepSpeed's engine enters its own (see zero_settings)."""
        zeroed = zero.uses_zero(self.accelerator)
        return nullcontext() if zeroed else in_precision(self.config.precision, self.accelerator.device.type)

    def backward(self, loss: Tensor) -> None:
        """Add a micro-batch's share of the gradient."""
        share = loss / self.config.accumulate
        self.accelerator.backward(self.loss_scale.up(share) if self.loss_scale else share)

    def note(self, step: int, keys: list[str], losses: dict[str, Tensor]) -> None:
        """Keep the losses of a micro-batch until the next log."""
        values = {name: value.detach().float() for name, value in losses.items()}
        self.window.add(Micro(step + 1, list(keys), values))
        if self.loss_scale:
            self.loss_scale.see(values["loss"])

    def guard(self, step: int, grad_norm: Tensor) -> None:
        """Prevent this and all later updates once a gradient is not finite.

        Gradients are equal on all ranks here, so all ranks decide alike. The fused optimizer skips the update
        on the device; the host looks when it logs, and finds the weights of the last good step.
        """
        left_out = bad = ~torch.isfinite(grad_norm)
        if self.loss_scale:  # an overflow costs this update alone
            bad = self.loss_scale.follow(bad, self.accelerator.reduce)
        self.bad_step = torch.where(bad & (self.bad_step == 0), float(step + 1), self.bad_step)
        self.optimizer.optimizer.found_inf = (left_out | (self.bad_step > 0)).float()

    def stop_if_not_finite(self) -> None:
        """Raise RunError on all ranks if a step since the last check was not finite; here the host waits for the
        device."""
        seen, self.window.unchecked = self.window.unchecked, []
        if bad_step := int(self.bad_step.item()):
            said = explain_nonfinite(bad_step, seen, self.run, self.accelerator)
            raise NotFinite(said, typed("replay", self.run, "--step", bad_step))

    def read_window(self, images: int) -> dict[str, float]:
        """Mean losses and gauges of the steps since the last call.

        Args:
            images: of a step.
        """
        means = self.window.means(self.accelerator)
        steps = self.window.batches // self.config.accumulate
        took = self.gauges.read(steps, images=steps * images)
        self.window = LossWindow()
        metrics = {**{f"train/{name}": value for name, value in means.items()}, **took}
        if self.loss_scale:
            scale, _, left_out = self.loss_scale.state.tolist()
            metrics |= {"train/loss_scale": scale, "train/updates_left_out": left_out}
        return metrics


def rate_of(train: TrainConfig, step: int) -> float:
    """The learning rate of a step (0-based)."""
    return lr_at(step, lr=train.lr, steps=max(train.steps, 1), warmup_steps=train.warmup_steps, power=train.power)
