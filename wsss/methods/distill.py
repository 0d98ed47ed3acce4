"""Cross-architecture consistency, teacher-student: a ViT learns from image labels and a frozen CNN's maps.

Shapes: B images, K classes, D teacher channels, h x w patch grid, N = h * w.
"""

from typing import ClassVar, Literal

from torch import Tensor, nn

from wsss.align import Level, Metric, alignment_distance
from wsss.cam import resize
from wsss.methods.base import Batch, Frozen, Method, classification_loss
from wsss.models.base import Network, Outputs


class Distill(Method):
    """Image labels plus patch features pulled towards the teacher's map.

        L = L_cls + align_weight * distance(project(patches), teacher map)                        (Eq. 3.4)
        project(F) = W_p F + b_p at every position                                                (Eq. 3.1)

    CAM kinds: `grad`; `class_map`, the student's classifier on its patches; `project`, the projected map read as
    the teacher's class map, which is what the consistency loss trains. With align_weight 0 the teacher is not
    run and the projection stays random: the control at an equal schedule.

    Args:
        target: the teacher tensor: its `class_map` (D = K) or its last `features`.
        level, metric, standardise: see align.alignment_distance.
        align_weight: lambda of Eq. 3.4, >= 0.

    Raises:
        ValueError: align_weight is negative.

    Source: smoke paper, section 3.2. Differs from the published code, where the target has a second channel that
    nothing trains (spec 0.2) and where channel counts that differ meet a random layer (spec 2.2).
    """

    needs_teacher: ClassVar[bool] = True

    def __init__(
        self,
        student: Network,
        teacher: Frozen,
        *,
        target: Literal["class_map", "features"] = "class_map",
        level: Level = "global",
        metric: Metric = "cosine",
        standardise: bool = False,
        align_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if align_weight < 0:
            raise ValueError(f"method.align_weight is {align_weight}; wanted >= 0")
        self.student = student
        self.teacher = teacher
        self.target = target
        self.level: Level = level
        self.metric: Metric = metric
        self.standardise = standardise
        self.align_weight = align_weight
        teacher_dim = teacher.network.head.out_channels if target == "class_map" else teacher.network.feature_dim
        self.project = nn.Conv2d(student.feature_dim, teacher_dim, kernel_size=1)

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        out = self.student(batch["image"])
        cls_loss = classification_loss(out.cls_logits_BK, batch["image_label"])
        if self.align_weight == 0:
            unused = sum(parameter.sum() for parameter in self.project.parameters())
            return {"loss": cls_loss + 0.0 * unused, "cls_loss": cls_loss}
        align_loss = self.align_loss(out, self.teacher(batch["image"]))
        return {"loss": cls_loss + self.align_weight * align_loss, "cls_loss": cls_loss, "align_loss": align_loss}

    def align_loss(self, student: Outputs, teacher: Outputs) -> Tensor:
        target_BDhw = teacher.class_map_BKhw if self.target == "class_map" else teacher.patches_BDhw
        target_BDhw = resize(target_BDhw, student.patches_BDhw.shape[-2:])
        return alignment_distance(
            self.project(student.patches_BDhw).flatten(2),
            target_BDhw.flatten(2),
            level=self.level,
            metric=self.metric,
            standardise=self.standardise,
        )

    def maps_of(self, out: Outputs) -> dict[str, Tensor]:
        projected_BDhw = self.project(out.patches_BDhw)
        if self.target == "features":
            projected_BDhw = self.teacher.on(projected_BDhw.device).head(projected_BDhw)
        return {"class_map": out.class_map_BKhw, "project": projected_BDhw}
