"""Segmentation by masks: the supervised references, and a network trained on refined masks (stage 3)."""

from collections.abc import Hashable
from typing import ClassVar, Literal

from torch import Tensor

from wsss.losses.labels import count_labelled, segmentation_loss
from wsss.methods.base import Batch, Method
from wsss.models.base import Network, Outputs
from wsss.models.segmentation import foreground_probabilities


class Supervised(Method):
    """L = cross-entropy of every labelled pixel. CAM kind: `seg`, the softmax probability of each class.

    The masks are human truth if data.train is a folder of pixel shards, or the refined masks of a weakly supervised run
    if data.masks names them; the latter is stage 3 of the classic pipeline.

    Raises:
        ValueError: the network gives no segmentation scores.

    Source: smoke paper, Table 4.2.
    """

    supervision: ClassVar[Literal["label", "mask", "mixed"]] = "mask"

    def __init__(self, student: Network) -> None:
        super().__init__()
        self.student = student

    def phase(self, step: int) -> Hashable:
        return None

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        totals, shares = batch.get("totals", {}), batch.get("shares", 1)
        seg_logits_BChw = seg_logits_of(self.student(batch["image"]))
        seg_loss = segmentation_loss(seg_logits_BChw, batch["mask"], labelled=totals.get("labelled"), shares=shares)
        return {"loss": seg_loss, "seg_loss": seg_loss}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"labelled": count_labelled(batch["mask"])}

    def maps_of(self, out: Outputs) -> dict[str, Tensor]:
        return {"seg": foreground_probabilities(seg_logits_of(out))}


def seg_logits_of(out: Outputs) -> Tensor:
    """The scores (B, C, h, w) of a segmentation network; raises ValueError for another network."""
    if out.seg_logits_BChw is None:
        raise ValueError("model: gives no segmentation scores; choose setr, segmenter, deeplab, smp or sam_decoder")
    return out.seg_logits_BChw
