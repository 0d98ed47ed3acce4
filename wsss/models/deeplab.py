"""DeepLabV3+ on any timm CNN: the network of stage 3, trained on refined maps.

Shapes: B images, K foreground classes, C = K + 1 classes with background 0, D channels, h x w grids.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.models.base import Outputs
from wsss.models.cnn import DILATED, HEAD
from wsss.models.dry_run import try_network
from wsss.models.segmentation import SegmentationNetwork, segmentation_outputs
from wsss.models.weights import create_backbone, normalisation

LOW_STRIDE = 4  # pixels per cell of the features that the decoder takes its edges from


def conv_bn_relu(in_dim: int, out_dim: int, kernel_size: int = 1, dilation: int = 1) -> nn.Sequential:
    """(B, in_dim, h, w) -> (B, out_dim, h, w)."""
    padding = dilation * (kernel_size // 2)
    conv = nn.Conv2d(in_dim, out_dim, kernel_size, padding=padding, dilation=dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_dim), nn.ReLU())


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: a 1x1, several dilated 3x3 and the image's mean, joined and projected.

    Source: Chen et al. 2017 (DeepLabV3), section 3.3.
    """

    def __init__(self, in_dim: int, dim: int, rates: Sequence[int]) -> None:
        super().__init__()
        dilated = [conv_bn_relu(in_dim, dim, 3, rate) for rate in rates]
        self.branches = nn.ModuleList([conv_bn_relu(in_dim, dim), *dilated])
        self.pool = conv_bn_relu(in_dim, dim)
        self.project = conv_bn_relu(dim * (len(rates) + 2), dim)

    def forward(self, x_BDhw: Tensor) -> Tensor:
        """(B, in_dim, h, w) -> (B, dim, h, w); in train mode of two or more images, whose means it normalises over."""
        pooled_BDhw = self.pool(x_BDhw.mean(dim=(2, 3), keepdim=True)).expand(-1, -1, *x_BDhw.shape[-2:])
        return self.project(torch.cat([*(branch(x_BDhw) for branch in self.branches), pooled_BDhw], dim=1))


class DeepLab(SegmentationNetwork):
    """Backbone -> ASPP -> enlarged to stride 4 -> joined with early features -> two 3x3 convs -> C. Output stride 4.

    Source: Chen et al. 2018 (DeepLabV3+), section 3.1.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        layers: tuple[int, int],
        stride: int,
        rates: Sequence[int],
        aspp_dim: int,
        low_dim: int,
        decoder_dim: int,
    ) -> None:
        super().__init__(feature_dim=decoder_dim, stride=stride, num_classes=num_classes, mean=mean, std=std)
        timm_cnn: Any = backbone
        self.backbone = timm_cnn
        self.layers = list(layers)
        low_in_dim, high_in_dim = (timm_cnn.feature_info[layer]["num_chs"] for layer in layers)
        self.aspp = ASPP(high_in_dim, aspp_dim, rates)
        self.low = conv_bn_relu(low_in_dim, low_dim)
        joined = conv_bn_relu(aspp_dim + low_dim, decoder_dim, 3)
        self.decoder = nn.Sequential(*joined, *conv_bn_relu(decoder_dim, decoder_dim, 3))

    def forward(self, image: Tensor) -> Outputs:
        low_BDhw, high_BDhw = self.backbone.forward_intermediates(
            self.normalise(image), indices=self.layers, intermediates_only=True
        )
        context_BDhw = F.interpolate(self.aspp(high_BDhw), size=low_BDhw.shape[-2:], mode="bilinear")
        features_BDhw = self.decoder(torch.cat([context_BDhw, self.low(low_BDhw)], dim=1))
        return segmentation_outputs(self.head(features_BDhw), features_BDhw)


def build_deeplab(
    num_classes: int,
    *,
    timm_name: str,
    weights: str | None = None,
    output_stride: int = 16,
    rates: tuple[int, ...] = (6, 12, 18),
    aspp_dim: int = 256,
    low_dim: int = 48,
    decoder_dim: int = 256,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    timm_options: Mapping[str, Any] | None = None,
) -> DeepLab:
    """A DeepLabV3+ on a timm CNN by name: resnet50, resnet101, xception65, ...

    Args:
        num_classes: K, without background.
        weights: of the backbone; null = random, 'timm' = timm's pretrained weights (downloads), else a path,
            loaded strictly.
        output_stride: pixels per cell of the backbone's last features, 8 or 16 (with 8, double the rates).
        rates: dilations of the pyramid.
        aspp_dim, low_dim, decoder_dim: channels of the pyramid, of the early features and of the decoder.
        mean, std: RGB normalisation; null = what timm states for this name.
        timm_options: further arguments of timm's constructor.

    Raises:
        ValueError: timm has no such model, it has no features at stride 4 and output_stride, or the weights do not fit.
    """
    options = {"output_stride": output_stride, **(timm_options or {})}
    backbone = create_backbone(timm_name, weights, options, head=HEAD, wanted=DILATED)
    strides = [stage["reduction"] for stage in getattr(backbone, "feature_info", [{"reduction": None}])]
    if LOW_STRIDE not in strides or strides[-1] != output_stride:
        raise ValueError(
            f"model.timm_name: '{timm_name}' has features at strides {strides}; wanted {LOW_STRIDE} and, last, "
            f"{output_stride}: choose a CNN, or another output_stride"
        )
    low, high = strides.index(LOW_STRIDE), len(strides) - 1
    backbone.prune_intermediate_layers([low, high], prune_norm=True, prune_head=True)  # what is behind gets no gradient
    deeplab = DeepLab(
        backbone,
        num_classes,
        *normalisation(backbone, mean, std),
        layers=(low, high),
        stride=output_stride,
        rates=rates,
        aspp_dim=aspp_dim,
        low_dim=low_dim,
        decoder_dim=decoder_dim,
    )
    try_network(deeplab, timm_name, stride=output_stride, grad_cam=False)
    return deeplab
