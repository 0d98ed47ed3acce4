"""Cross-architecture consistency, teacher-student: a ViT learns from image labels and a frozen CNN's maps."""

from collections.abc import Hashable
from typing import Any, ClassVar

from torch import Tensor

from wsss.methods.base import Batch, Frozen, image_label_loss
from wsss.methods.consistency import Consistency
from wsss.models.base import Network, Outputs


class Distill(Consistency):
    """Image labels plus patch features pulled towards the frozen teacher's map.

        L = L_cls + align_weight * align_loss                                                     (Eq. 3.4)

    With align_weight 0 the teacher is not run and the projection stays random: the control at an equal schedule.

    CAM kinds: `grad`, `layer`, `class_map` (the student's classifier on its patches), and `project`.

    Source: smoke paper, section 3.2. Differs from the published code, where the target has a second channel that
    nothing trains (D-02) and where channel counts that differ meet a random layer (D-03).
    """

    needs_teacher: ClassVar[bool] = True

    def __init__(self, student: Network, teacher: Frozen, **options: Any) -> None:
        super().__init__(student, teacher.network, **options)
        self.teacher = teacher

    def phase(self, step: int) -> Hashable:
        return None

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        out = self.student(batch["image"])
        cls_loss = image_label_loss(out, batch["image_label"])
        if self.align_weight == 0:
            return {"loss": cls_loss + self.unused(), "cls_loss": cls_loss}
        align_loss = self.align_loss(out, self.teacher(batch["image"]))
        return {"loss": cls_loss + self.align_weight * align_loss, "cls_loss": cls_loss, "align_loss": align_loss}

    def maps_of(self, out: Outputs) -> dict[str, Tensor]:
        teacher = self.teacher.on(out.patches_BDhw.device)
        return {**super().maps_of(out), **self.projected_maps(out, teacher)}
