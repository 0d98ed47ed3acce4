"""Cross-architecture consistency, teacher-student: a ViT learns from image labels and a frozen CNN's maps."""

from collections.abc import Hashable
from typing import Any, ClassVar

from torch import Tensor

from wsss.losses.still import still_loss, still_tokens
from wsss.methods.base import Batch, Frozen, image_label_loss
from wsss.methods.consistency import Consistency
from wsss.models.base import Network, Outputs


class Distill(Consistency):
    """Image labels plus patch features pulled towards the frozen teacher's map.

        L = L_cls + align_weight * align_loss + time_weight * time_loss                           (Eq. 3.4)

    With align_weight 0 the teacher is not run and the projection stays random: the control at an equal schedule.

    The time loss makes the maps of two neighbouring frames equal where nothing moves between them. It uses the map that
    the alignment trains or, without alignment, the class map. It needs batches of pairs (data.pairs).

    CAM kinds: `grad`, `layer`, `class_map` (the student's classifier on its patches), and `project`.

    Args:
        time_weight: of losses.still.still_loss, >= 0; 0 does not compute it.
        still: colour difference up to which a token counts as still, in [0, 1].
        options: of Consistency.

    Raises:
        ValueError: time_weight or still out of range, or options that do not go together.

    Source: smoke paper, section 3.2. Differs from the published code, where the target has a second channel that
    nothing trains (D-02) and where a random layer joins different numbers of channels (D-03). The time loss is our own
    (D-156); the paper names video as future work."""

    needs_teacher: ClassVar[bool] = True

    def __init__(
        self, student: Network, teacher: Frozen, *, time_weight: float = 0.0, still: float = 0.02, **options: Any
    ) -> None:
        super().__init__(student, teacher.network, **options)
        if time_weight < 0 or not 0 <= still <= 1:
            raise ValueError(f"method.time_weight is {time_weight}, method.still {still}; wanted >= 0 and in [0, 1]")
        self.teacher = teacher
        self.time_weight, self.still = time_weight, still
        self.compares_pairs = time_weight > 0

    def phase(self, step: int) -> Hashable:
        return None

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        out = self.student(batch["image"])
        cls_loss = image_label_loss(out, batch["image_label"])
        losses = {"loss": cls_loss, "cls_loss": cls_loss}
        if self.align_weight == 0:
            losses["loss"] = losses["loss"] + self.without_alignment()
        else:
            losses["align_loss"] = self.align_loss(out, self.teacher(batch["image"]))
            losses["loss"] = losses["loss"] + self.align_weight * losses["align_loss"]
        if self.time_weight:
            losses["time_loss"] = self.time_loss(out, batch["image"])
            losses["loss"] = losses["loss"] + self.time_weight * losses["time_loss"]
        return losses

    def time_loss(self, out: Outputs, image_B3HW: Tensor) -> Tensor:
        """The time loss of a batch in which images 2i and 2i + 1 are neighbouring frames."""
        map_BChw = out.class_map_BKhw if self.align_weight == 0 else self.student_map(out)
        still_Phw = still_tokens(image_B3HW[::2], image_B3HW[1::2], map_BChw.shape[-2:], self.still)
        return still_loss(map_BChw[::2], map_BChw[1::2], still_Phw)

    def check_images(self, images: int) -> None:
        super().check_images(images)
        if self.compares_pairs and images % 2:
            raise ValueError(
                f"method.time_weight: a process has {images} images at a time, which do not form pairs; wanted an even "
                "number"
            )

    def maps_of(self, out: Outputs) -> dict[str, Tensor]:
        teacher = self.teacher.on(out.patches_BDhw.device)
        return {**super().maps_of(out), **self.projected_maps(out, teacher)}
