"""Cross-architecture consistency, co-training: a ViT and a CNN learn from image labels and from each other's maps."""

from collections.abc import Hashable
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from wsss.methods.base import Batch, image_label_loss
from wsss.methods.consistency import Consistency
from wsss.models.base import Network, Outputs


class CoTrain(Consistency):
    """Both networks learn from the labels, and their maps are pulled together.

        L = L_cls(student) + L_cls(partner) + align_weight * align_loss(student, partner)

    One module holds both networks, so that DDP or DeepSpeed wraps and updates them together (of two engines under one
    loss only the first is trained). Afterwards the student is used.

    CAM kinds: `grad`, `layer`, `class_map` and `project`, of the student.

    Args:
        gradient: which networks the alignment trains: `both`, as published, `student` alone (the partner learns from
            labels only), or `alternate`, the student on even steps and the partner on odd ones.
        freeze_norm: keep the partner's BatchNorm at its initial statistics. With several processes on GPUs, its
            layers are otherwise made SyncBatchNorm by the launcher.

    Raises:
        ValueError: options that do not go together.

    Source: smoke paper, section 3.2 and Table 4.7, "co-training"; D-82.
    """

    needs_partner: ClassVar[bool] = True

    def __init__(
        self,
        student: Network,
        partner: Network,
        *,
        gradient: Literal["both", "student", "alternate"] = "both",
        freeze_norm: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(student, partner, **options)
        if freeze_norm and not any(map(is_norm, partner.modules())):
            raise ValueError("method.freeze_norm: the partner has no BatchNorm; leave it out")
        self.partner = partner
        self.gradient = gradient
        self.freeze_norm = freeze_norm

    def train(self, mode: bool = True) -> "CoTrain":
        super().train(mode)
        if self.freeze_norm:
            for module in self.partner.modules():
                if is_norm(module):
                    module.eval()
        return self

    def phase(self, step: int) -> Hashable:
        return step % 2 if self.gradient == "alternate" else None

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        student, partner = self.student(batch["image"]), self.partner(batch["image"])
        cls_loss = image_label_loss(student, batch["image_label"])
        partner_loss = image_label_loss(partner, batch["image_label"])
        losses = {"loss": cls_loss + partner_loss, "cls_loss": cls_loss, "partner_loss": partner_loss}
        if self.align_weight == 0:
            return {**losses, "loss": losses["loss"] + self.without_alignment()}
        if self.gradient == "student" or (self.gradient == "alternate" and step % 2 == 0):
            partner = partner.detached()
        elif self.gradient == "alternate":
            student = student.detached()
        align_loss = self.align_loss(student, partner)
        return {**losses, "loss": losses["loss"] + self.align_weight * align_loss, "align_loss": align_loss}

    def maps_of(self, out: Outputs) -> dict[str, Tensor]:
        return {**super().maps_of(out), **self.projected_maps(out, self.partner)}


def is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)
