"""Classification by image labels: used to train a teacher, and as the baseline of every student."""

from collections.abc import Hashable

from torch import Tensor

from wsss.losses.dark_channel import dark_channel_loss
from wsss.methods.base import Batch, Method, image_label_loss
from wsss.models.base import Network
from wsss.models.vit import ViT


class Classify(Method):
    """L = L_cls, summed over the network's classifiers, + dark_weight * dark_channel_loss(attention, image).

    CAM kinds: `class_map` (the classifier at every position), `grad`, `layer`, and those of the network's own.

    Args:
        dark_weight: of the dark channel prior on a ViT's attention, >= 0; 0 does not compute it.

    Raises:
        ValueError: dark_weight is negative, or not 0 for a network that is no ViT with learned positions.
    """

    def __init__(self, student: Network, *, dark_weight: float = 0.0) -> None:
        super().__init__()
        if dark_weight < 0 or (dark_weight and type(student) is not ViT):
            raise ValueError(
                f"method.dark_weight is {dark_weight}; wanted >= 0, and 0 unless the model is a vit: training does not "
                f"read the attention of a {type(student).__name__}"
            )
        if dark_weight and isinstance(student, ViT):
            student.refuse_without_attention()
        self.student = student
        self.dark_weight = dark_weight

    def phase(self, step: int) -> Hashable:
        return None

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        if self.dark_weight and isinstance(self.student, ViT):
            out, attention_Bhw = self.student.with_attention(batch["image"])
            cls_loss = image_label_loss(out, batch["image_label"])
            dark_loss = dark_channel_loss(attention_Bhw, batch["image"])
            return {"loss": cls_loss + self.dark_weight * dark_loss, "cls_loss": cls_loss, "dark_loss": dark_loss}
        cls_loss = image_label_loss(self.student(batch["image"]), batch["image_label"])
        return {"loss": cls_loss, "cls_loss": cls_loss}
