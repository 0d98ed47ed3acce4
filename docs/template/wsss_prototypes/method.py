"""Image labels, and a memory of what each class looks like, which all processes share.

Shapes: B images, K classes, D channels, h x w patch grid.
"""

from collections.abc import Callable, Hashable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.methods.base import Batch, Method, image_label_loss
from wsss.models.base import Network, Outputs


class Prototypes(Method):
    """L = L_cls + proto_weight * mean over images and classes of y (1 - cos(mean patch, prototype))

    A prototype is the moving mean of the directions of the mean patches of the images that show its class; until
    there was one it is 0 and trains nothing. CAM kinds: `class_map`, and `prototype`, each patch's cosine.

    Args:
        proto_weight: >= 0.
        momentum: share of a prototype that a step leaves, in [0, 1].
    """

    equal_on_ranks: ClassVar[tuple[str, ...]] = ("prototype_KD",)  # saved, and equal since `synchronise` writes it

    def __init__(self, student: Network, *, proto_weight: float = 0.1, momentum: float = 0.9) -> None:
        super().__init__()
        if proto_weight < 0 or not 0 <= momentum <= 1:
            raise ValueError(f"method: wanted proto_weight ({proto_weight}) >= 0 and momentum ({momentum}) in [0, 1]")
        self.student, self.proto_weight, self.momentum = student, proto_weight, momentum
        empty_KD = torch.zeros(student.head.out_channels, student.feature_dim)
        self.register_buffer("prototype_KD", empty_KD)
        self.register_buffer("fresh_KD", empty_KD.clone(), persistent=False)  # of this step, so never saved

    def phase(self, step: int) -> Hashable:
        return None  # every step does the same

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        out, shown_BK = self.student(batch["image"]), batch["image_label"]
        cls_loss = image_label_loss(out, shown_BK)
        direction_BD = F.normalize(out.patches_BDhw.float().mean(dim=(2, 3)), dim=1)
        known_K = self.prototype_KD.any(dim=1)
        far_BK = 1 - direction_BD @ F.normalize(self.prototype_KD, dim=1).T
        proto_loss = (far_BK * shown_BK * known_K).mean()
        if self.training:  # adds up over the micro-batches of a step
            self.fresh_KD += shown_BK.T @ direction_BD.detach()
        return {"loss": cls_loss + self.proto_weight * proto_loss, "cls_loss": cls_loss, "proto_loss": proto_loss}

    def synchronise(self, gather: Callable[[Tensor], Tensor]) -> None:
        fresh_KD = gather(self.fresh_KD).sum(dim=0)
        momentum_K1 = torch.where(self.prototype_KD.any(dim=1, keepdim=True), self.momentum, 0.0)
        moved_KD = momentum_K1 * self.prototype_KD + (1 - momentum_K1) * F.normalize(fresh_KD, dim=1)
        self.prototype_KD.copy_(torch.where(fresh_KD.any(dim=1, keepdim=True), moved_KD, self.prototype_KD))
        self.fresh_KD.zero_()

    def maps_of(self, out: Outputs) -> dict[str, Tensor]:
        near_BKhw = torch.einsum("kd,bdhw->bkhw", self.prototype_KD, F.normalize(out.patches_BDhw.float(), dim=1))
        return {**super().maps_of(out), "prototype": near_BKhw}
