"""Any timm CNN as an image classifier whose head is a map: the teacher.

Shapes: B images, K classes, D channels, h x w feature grid.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wsss.models.base import Network, Outputs, create_backbone, layer_at
from wsss.models.dry_run import must_run, try_network

DILATED = "a CNN that timm can dilate to this output_stride, such as resnet50"


class CNN(Network):
    """Convolutional features, a 1x1 classifier at every position, and its spatial mean as the image's logits.

        class_map = W * features + b,   cls_logits = mean over h, w of class_map

    which equals pooling first and classifying after, so the class map is the class activation map.
    """

    def __init__(
        self, backbone: nn.Module, num_classes: int, stride: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        timm_cnn: Any = backbone
        super().__init__(feature_dim=timm_cnn.num_features, stride=stride, num_classes=num_classes, mean=mean, std=std)
        self.backbone = timm_cnn

    def forward(self, image: Tensor) -> Outputs:
        features_BDhw = self.backbone.forward_features(self.normalise(image))
        class_map_BKhw = self.head(features_BDhw)
        return Outputs(class_map_BKhw.mean(dim=(2, 3)), features_BDhw, class_map_BKhw)

    def grad_cam_layer(self, index: int) -> nn.Module:
        """A stage of the network, -1 the last."""
        return stage_of(self.backbone, index)

    def as_map(self, activation: Tensor, image: Tensor) -> Tensor:
        return activation


def stage_of(backbone: nn.Module, index: int) -> nn.Module:
    """A stage of a timm CNN by its number, as in a list; timm calls them stages, blocks or layer1 .. layer4, else its
    feature_info names them. Raises ValueError if there is none of this number."""
    for stages in ("stages", "blocks"):
        if hasattr(backbone, stages):
            return layer_at(getattr(backbone, stages), index)
    layers = [module for name, module in backbone.named_children() if name.startswith("layer")]
    about: Any = getattr(backbone, "feature_info", [])
    return layer_at(layers or [backbone.get_submodule(stage["module"]) for stage in about], index)


def build_cnn(
    num_classes: int,
    *,
    timm_name: str,
    weights: str | None = None,
    output_stride: int = 16,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    timm_options: Mapping[str, Any] | None = None,
) -> CNN:
    """A timm CNN by name: resnet50, resnet101, tf_efficientnet_lite0, ...

    Args:
        num_classes: K.
        weights: null = random, 'timm' = timm's pretrained weights (downloads), else a path, loaded strictly.
        output_stride: pixels per cell of the class map, 8, 16 or 32; the last stages are dilated to get there.
        mean, std: RGB normalisation; null = what timm states for this name.

    Raises:
        ValueError: timm has no such model, it has no convolutional map, or the weights do not fit.
    """
    options = {"output_stride": output_stride, **(timm_options or {})}
    head = ("fc", "classifier", "head")
    backbone = create_backbone(timm_name, weights, options, head=head, wanted=DILATED)
    with must_run(timm_name, "CNN"), torch.no_grad():
        features = backbone.eval().forward_features(torch.zeros(1, 3, 64, 64))
    side = 64 // output_stride
    if features.shape != (1, backbone.num_features, side, side):
        raise ValueError(
            f"model.timm_name: '{timm_name}' gives features {tuple(features.shape)} for 64x64 px; "
            f"wanted (1, {backbone.num_features}, {side}, {side}): choose a CNN, or another output_stride"
        )
    config = backbone.pretrained_cfg
    cnn = CNN(backbone.train(), num_classes, output_stride, mean or config["mean"], std or config["std"])
    try_network(cnn, timm_name, stride=output_stride)
    return cnn
