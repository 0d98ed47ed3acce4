"""What a training objective is, and how a frozen teacher is held.

Batch: image (B, 3, H, W) RGB in [0, 1], image_label (B, K) multi-hot, box (B, 4), key. If a method counts something
(see Method.counts), a training batch also has `totals`, {name: count over the whole step}, and `shares`, the number of
batches into which the step is divided (micro-batches times processes). Without these two, the batch is the whole step.
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

    A method keeps its own state (prototypes, a memory bank, a moving-average teacher) in buffers, which are saved in
    checkpoints. Each rank updates its buffers from its own images, and only `synchronise` makes them equal again. So
    every saved buffer, of the method or of a network in it, must either be a BatchNorm statistic, which the launcher
    averages, or be named in `equal_on_ranks`. A run with several processes refuses any other buffer at its start, and
    at each save and evaluation it compares the named ones between ranks. A buffer that is not saved (persistent=False)
    must be a constant or be computed again in each step.

    Attributes:
        student: the network that is trained and whose maps are read.
        needs_teacher: whether the constructor takes a Frozen teacher after the student.
        needs_partner: whether it takes a second network to train after the student.
        supervision: what it learns from: `label` image labels; `mask` batch["mask"], (B, H, W) class ids; `mixed`
            image labels, and masks of a few more images in batch["pixel"], a batch of its own.
        gives_maps: whether there are maps of classes to read.
        segments: whether validation during training evaluates the student's `seg_logits_BChw` first.
        compares_pairs: whether images 2i and 2i + 1 of a batch must be two frames of a clip, seen alike.
        views: what the loader makes of an image: `plain` one view, `two` a main and a second view and their colours.
        equal_on_ranks: names of saved buffers, or of modules with all their buffers, that are equal on all ranks at the
            end of a step: constants, values that depend only on the weights, and what `synchronise` makes equal. Any
            module in the method can have this attribute.
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
        """A key for everything besides the batch and the weights on which the losses of a step depend. Steps with equal
        keys launch the same kernels, so one recorded graph serves them all (train.graph). By default every step has its
        own key."""
        return step

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """{name: scalar int64}: what the method's losses are means over, if not images: for example labelled pixels or
        pairs. The launcher averages the losses of the parts of a step with equal weights, however many pixels each part
        has. So such a mean must be computed as the sum over the part, divided by the `name` of batch["totals"] (the
        count over the whole step) and multiplied by batch["shares"] (the number of parts). Then the loss of a step does
        not depend on the number of processes and micro-batches.

        Args:
            batch: as the loader gives it, on the host, its images not yet floats.
        """
        return {}

    def check_images(self, images: int) -> None:
        """Raise ValueError if the method cannot learn from this number of images per process and micro-batch. Called
        before the first step."""

    def check_size(self, side: int) -> None:
        """Raise ValueError if an option does not fit images of side x side pixels; it says which one, and what fits.
        Called before the first step."""

    def as_on_gpus(self) -> None:
        """From now on take the code path of a GPU for all tensors: `wsss plan` counts a GPU's step on meta tensors,
        which are on no device. Only for methods whose code differs on CPUs, above all where shapes depend on values."""

    def synchronise(self, gather: Callable[[Tensor], Tensor]) -> None:
        """Make the buffers equal that each rank has updated from its own images. Called on all ranks, without
        gradients, once after each update, even if there is only one rank.

            self.prototypes_KD.copy_(gather(self.prototypes_KD).mean(0))  # a mean
            seen_BD = gather(self.fresh_BD).flatten(0, 1)  # a queue
            self.bank_ND.copy_(torch.cat([seen_BD, self.bank_ND])[: len(self.bank_ND)])

        It must change buffers, not weights: ZeRO discards changes of weights that its optimizer did not make.

        Args:
            gather: tensor -> (ranks, *its shape), by rank. All ranks must call it with tensors of one shape and type.
        """

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Further pictures for a gallery, by name: (B, h, w) floats in [0, 1], or int64 class ids."""
        return {}

    def maps_of(self, out: Outputs) -> dict[str, Tensor]:
        """{kind: raw map (B, K, h, w)} of the maps that need only the student's forward pass, no gradients."""
        return {"class_map": out.class_map_BKhw, **out.maps}


class Frozen:
    """A network that is used and never trained: no gradient, always in eval mode.

    It is not an nn.Module, so that a Method that holds one keeps it out of parameters(), state_dict(), train() and the
    wrapper of DDP or DeepSpeed."""

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
    """0 times the sum of all trained parameters that a step does not use, so that these get a (zero) gradient, too."""
    trained = (p.sum() for module in modules for p in module.parameters() if p.requires_grad)
    return 0.0 * sum(trained, start=torch.zeros(()))


def image_label_loss(out: Outputs, image_label_BK: Tensor) -> Tensor:
    """Sum of the classification losses over the classifiers of a network: a single one, or one per branch."""
    return sum(
        (classification_loss(logits, image_label_BK) for logits in out.further_logits),
        start=classification_loss(out.cls_logits_BK, image_label_BK),
    )
