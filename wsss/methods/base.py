"""What a training objective is, and how a frozen teacher is held.

Batch: image (B, 3, H, W) RGB in [0, 1], image_label (B, K) multi-hot, box (B, 4), key. In training, where a method
counts (see Method.counts): totals {name: count of the whole step}, and shares, the number of batches that the step has
over its micro-batches and processes. Without them the batch is the whole step.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from wsss.losses.labels import classification_loss
from wsss.models.base import Network, Outputs

Batch = Mapping[str, Any]


class Method(nn.Module):
    """A trainable objective. The trainer knows nothing else about the science.

    `forward(batch, step)` returns scalar losses: "loss" is minimised, the others are logged. It is called once per
    step, so a method may run its networks as often as it likes and still be wrapped as one module. Every trainable
    parameter gets a gradient on every step.

    A method keeps state of its own (prototypes, a memory bank, a teacher that follows) in buffers, which a checkpoint
    holds. Each rank changes its buffers by its own images, and only `synchronise` makes them equal again. So each saved
    buffer, of the method or of a network in it, must be a statistic of BatchNorm, which the launcher averages, or be
    named in `equal_on_ranks`. A run of more than one process refuses any other buffer when it starts, and compares
    those that are named between the ranks at each save and evaluation. A buffer that is not saved (persistent=False)
    is a constant, or is made anew in each step.

    Attributes:
        student: the network that is trained and whose maps are read.
        needs_teacher: whether the constructor takes a Frozen teacher after the student.
        needs_partner: whether it takes a second network to train after the student.
        supervision: what it learns from: `label` image labels; `mask` batch["mask"], (B, H, W) class ids; `mixed`
            image labels, and masks of a few more images in batch["pixel"], a batch of its own.
        gives_maps: whether there are maps of classes to read.
        segments: whether the student's `seg_logits_BChw` are what validation in training judges first.
        compares_pairs: whether images 2i and 2i + 1 of a batch must be two frames of a clip, seen alike.
        views: what the loader makes of an image: `plain` one view, `two` a main and a second view and their colours.
        equal_on_ranks: names of saved buffers, or of modules all of whose buffers are, that are equal on all ranks at
            the end of a step: constants, what follows from weights alone, what `synchronise` makes so. Any module in
            the method can have this attribute.
    """

    student: Network
    needs_teacher: ClassVar[bool] = False
    needs_partner: ClassVar[bool] = False
    supervision: ClassVar[Literal["label", "mask", "mixed"]] = "label"
    gives_maps: ClassVar[bool] = True
    segments: ClassVar[bool] = False
    views: ClassVar[Literal["plain", "two"]] = "plain"
    equal_on_ranks: ClassVar[tuple[str, ...]] = ()
    compares_pairs: bool = False

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        raise NotImplementedError

    def phase(self, step: int) -> Hashable:
        """What a step's losses depend on besides the batch and the weights. Steps of one phase launch the same kernels,
        so that one recording serves them (train.graph). By itself each step is a phase of its own."""
        return step

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """{name: scalar int64} of what the method's means are over, where that is not the number of images: labelled
        pixels, pairs. Losses of the parts of a step are averaged with equal weight, however much each part has; so a
        mean over labels must divide by batch["totals"], these counts added up over the step, and be multiplied by
        batch["shares"]. Then a step has the same loss on any number of processes and micro-batches.

        Args:
            batch: as the loader gives it, on the host, its images not yet floats.
        """
        return {}

    def check_images(self, images: int) -> None:
        """Raise ValueError if the method cannot learn from so many images at a time, those of one process and
        micro-batch. Called before the first step."""

    def check_size(self, side: int) -> None:
        """Raise ValueError if the method cannot learn from images of side x side pixels: an option does not fit them.
        It says which, and what fits. Called before the first step."""

    def as_on_gpus(self) -> None:
        """From now on compute what a GPU would, also on tensors of a CPU: `wsss plan` counts a GPU's step on tensors
        without values, which lie nowhere. For methods that take another way on CPUs, above all one whose shapes depend
        on values."""

    def synchronise(self, gather: Callable[[Tensor], Tensor]) -> None:
        """Make equal on all ranks what each has learnt from its own images. Called on all ranks without gradients, once
        after each update, also where there is one rank: so state is a function of the step and of nothing else.

            self.prototypes_KD.copy_(gather(self.prototypes_KD).mean(0))  # a mean
            seen_BD = gather(self.fresh_BD).flatten(0, 1)  # a queue
            self.bank_ND.copy_(torch.cat([seen_BD, self.bank_ND])[: len(self.bank_ND)])

        It writes buffers, not weights: ZeRO would throw away what is changed in these outside of its optimizer.

        Args:
            gather: tensor -> (ranks, *its shape), by rank. All ranks must call it with tensors of one shape and type.
        """

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """What a gallery shows next to maps and masks, by name: (B, h, w) floats in [0, 1], or int64 class ids."""
        return {}

    def maps_of(self, out: Outputs) -> dict[str, Tensor]:
        """{kind: raw map (B, K, h, w)} that a forward pass of the student gives without gradients."""
        return {"class_map": out.class_map_BKhw, **out.maps}


class Frozen:
    """A network that is used and never trained: no gradient, always in eval mode.

    It is no nn.Module, so that a Method that holds one keeps it out of parameters(), state_dict(), train() and the
    wrapper of DDP or DeepSpeed.
    """

    def __init__(self, network: Network) -> None:
        self.network = network.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Outputs:
        return self.on(image.device)(image)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Frozen":
        return self  # nothing changes it: copies of a method share it

    def on(self, device: torch.device) -> Network:
        """The network, moved to `device` the first time."""
        if self.network.head.weight.device != device:
            self.network.to(device)
        return self.network


def left_out(modules: Iterable[nn.Module]) -> Tensor:
    """0 times every trained parameter of what a step leaves out, so that it gets a gradient as on any other step."""
    trained = (p.sum() for module in modules for p in module.parameters() if p.requires_grad)
    return 0.0 * sum(trained, start=torch.zeros(()))


def image_label_loss(out: Outputs, image_label_BK: Tensor) -> Tensor:
    """Sum of the classification losses of all classifiers of a network: one, or one for each of its branches."""
    return sum(
        (classification_loss(logits, image_label_BK) for logits in out.further_logits),
        start=classification_loss(out.cls_logits_BK, image_label_BK),
    )
