"""Classification by image labels: how a teacher is trained, and the baseline of every student."""

from torch import Tensor

from wsss.methods.base import Batch, Method, classification_loss
from wsss.models.base import Network


class Classify(Method):
    """L = L_cls. CAM kinds: `class_map` (the classifier at every position) and `grad`."""

    def __init__(self, student: Network) -> None:
        super().__init__()
        self.student = student

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        cls_loss = classification_loss(self.student(batch["image"]).cls_logits_BK, batch["image_label"])
        return {"loss": cls_loss, "cls_loss": cls_loss}
