"""What a training objective is, and how a frozen teacher is held.

Batch: image (B, 3, H, W) RGB in [0, 1], image_label (B, K) multi-hot, box (B, 4), key.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.align import at_least_float32
from wsss.contrast import sum_in_groups
from wsss.metrics import IGNORE_INDEX
from wsss.models.base import Network, Outputs
from wsss.resize import resize

Batch = Mapping[str, Any]


class Method(nn.Module):
    """A trainable objective. The trainer knows nothing else about the science.

    `forward(batch, step)` returns scalar losses: "loss" is minimised, the others are logged. It is called once per
    step, so a method may run its networks as often as it likes and still be wrapped as one module. Every trainable
    parameter gets a gradient on every step.

    Attributes:
        student: the network that is trained and whose maps are read.
        needs_teacher: whether the constructor takes a Frozen teacher after the student.
        needs_partner: whether it takes a second network to train after the student.
        supervision: what it learns from: `label` image labels; `mask` batch["mask"], (B, H, W) class ids; `mixed`
            image labels, and masks of a few more images in batch["pixel"], a batch of its own.
        gives_maps: whether there are maps of classes to read.
        segments: whether the student's `seg_logits_BChw` are what validation in training judges first.
        views: what the loader makes of an image: `plain` one view, `two` a main and a second view and their colours.
    """

    student: Network
    needs_teacher: ClassVar[bool] = False
    needs_partner: ClassVar[bool] = False
    supervision: ClassVar[Literal["label", "mask", "mixed"]] = "label"
    gives_maps: ClassVar[bool] = True
    segments: ClassVar[bool] = False
    views: ClassVar[Literal["plain", "two"]] = "plain"

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        raise NotImplementedError

    def pictures(self, image: Tensor, image_label_BK: Tensor) -> dict[str, Tensor]:
        """What is worth a look beside maps and masks, by name: (B, h, w) floats in [0, 1], or int64 class ids."""
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

    def on(self, device: torch.device) -> Network:
        """The network, moved to `device` the first time."""
        if self.network.head.weight.device != device:
            self.network.to(device)
        return self.network


def classification_loss(cls_logits_BK: Tensor, image_label_BK: Tensor) -> Tensor:
    """Binary cross-entropy of each class, averaged over images and classes, in float32.

        L_cls = -mean_bk [ y log sigmoid(z) + (1 - y) log sigmoid(-z) ]

    Source: smoke paper, section 4.2; multi-label form, so that K = 1, 20 and 80 share it.
    """
    logits_BK = at_least_float32(cls_logits_BK)
    return F.binary_cross_entropy_with_logits(logits_BK, image_label_BK.to(logits_BK.dtype))


def image_label_loss(out: Outputs, image_label_BK: Tensor) -> Tensor:
    """Sum of the classification losses of all classifiers of a network: one, or one for each of its branches."""
    return sum(
        (classification_loss(logits, image_label_BK) for logits in out.further_logits),
        start=classification_loss(out.cls_logits_BK, image_label_BK),
    )


def segmentation_loss(seg_logits_BChw: Tensor, mask_BHW: Tensor) -> Tensor:
    """Cross-entropy of the scores resized to the mask, averaged over its pixels that are not 255, in float32.

    0 without such a pixel.
    """
    seg_logits_BCHW = resize(seg_logits_BChw.float(), mask_BHW.shape[-2:])
    total = F.cross_entropy(seg_logits_BCHW, mask_BHW.long(), ignore_index=IGNORE_INDEX, reduction="sum")
    return total / (mask_BHW != IGNORE_INDEX).sum().clamp(min=1)


def balanced_segmentation_loss(seg_logits_BChw: Tensor, label_BHW: Tensor, group_size: int | None = None) -> Tensor:
    """Cross-entropy in which background and foreground weigh the same however large they are.

        L = 1/2 mean over pixels of label 0 + 1/2 mean over pixels of labels 1..K

    The scores are resized to the label; 255 does not count. A half without pixels is 0 (published: NaN).

    Args:
        group_size: images whose pixels share a mean; the loss is then averaged over groups. null = all images.

    Source: ToCo (spec/msee 1.3, 10; golden segloss).
    """
    seg_logits_BCHW = resize(at_least_float32(seg_logits_BChw), label_BHW.shape[-2:])
    ignored = label_BHW == IGNORE_INDEX
    nll_BHW = F.cross_entropy(seg_logits_BCHW, label_BHW.long(), ignore_index=IGNORE_INDEX, reduction="none")
    halves = []
    for half_BHW in (label_BHW == 0, (label_BHW != 0) & ~ignored):
        total_G = sum_in_groups((nll_BHW * half_BHW).sum(dim=(1, 2)), group_size)
        halves.append((total_G / sum_in_groups(half_BHW.sum(dim=(1, 2)), group_size).clamp(min=1)).mean())
    return 0.5 * (halves[0] + halves[1])
