"""Any timm network that ends with a feature map (a CNN, or a transformer with stages) as an image classifier whose head
is applied at every position; and the single stages of a CNN.

Shapes: B images, K classes, D channels, h x w feature grid.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn

from wsss.models.base import Network, Outputs, layer_at
from wsss.models.dry_run import must_run, try_network
from wsss.models.reach import check_shift
from wsss.models.weights import create_backbone, name_at_timm, normalisation

DILATED = "a CNN that timm can dilate to this output_stride, such as resnet50"
HEAD = ("fc", "classifier", "head")  # what timm calls the classifiers of these
OWN = f"{DILATED}, or model.output_stride=null, the stride that it has by itself"
OF_ONE_SIZE = ("swin_transformer", "swin_transformer_v2", "swin_transformer_v2_cr")
WINDOWED = (*OF_ONE_SIZE, "davit", "tiny_vit")  # torch.export ponders for hours over windows that are padded
TRIED_PX = (64, 128)  # a small image that is no square


class CNN(Network):
    """Convolutional features, a 1x1 classifier at every position, and its spatial mean as the image's logits.

        class_map = W * features + b,   cls_logits = mean over h, w of class_map

    which equals pooling first and classifying after, so the class map is the class activation map.

    Args:
        backbone: of timm; its features are (B, D, h, w), or (B, h, w, D) where it says so (`output_fmt`).
        whole_cells: refuse images whose sides are not multiples of the stride.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        stride: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        whole_cells: bool = False,
    ) -> None:
        timm_cnn: Any = backbone
        super().__init__(feature_dim=timm_cnn.num_features, stride=stride, num_classes=num_classes, mean=mean, std=std)
        self.backbone = timm_cnn
        self.whole_cells = whole_cells

    def forward(self, image: Tensor) -> Outputs:
        self.check_size(*image.shape[-2:])
        features_BDhw = features_of(self.backbone, self.normalise(image))
        class_map_BKhw = self.head(features_BDhw)
        return Outputs(class_map_BKhw.mean(dim=(2, 3)), features_BDhw, class_map_BKhw)

    def check_size(self, height: int, width: int) -> None:
        if self.whole_cells and (height % self.stride or width % self.stride):
            fits = [max(round(side / self.stride), 1) * self.stride for side in (height, width)]
            raise ValueError(
                f"images of {height} x {width} px; this {type(self.backbone).__name__} takes sides that are multiples "
                f"of its stride {self.stride}, such as {fits[0]} x {fits[1]}"
            )

    def grad_cam_layer(self, index: int) -> nn.Module:
        """A stage of the network, -1 the last."""
        return stage_of(self.backbone, index)

    def as_map(self, activation: Tensor, image: Tensor) -> Tensor:
        return channels_first(self.backbone, activation)


def is_of_one_size(timm_name: str) -> bool:
    """Whether timm builds this network for a single image size only, unless it gets strict_img_size=False."""
    return timm.models.is_model_in_modules(name_at_timm(timm_name), OF_ONE_SIZE)


def features_of(backbone: Any, image: Tensor) -> Tensor:
    """timm's own last features of a normalised image, (B, D, h, w)."""
    return channels_first(backbone, backbone.forward_features(image))


def channels_first(backbone: Any, features: Tensor) -> Tensor:
    """(B, D, h, w) of features in the backbone's own order: Swin's and others' are (B, h, w, D)."""
    is_last = getattr(backbone, "output_fmt", "NCHW") == "NHWC"
    return features.permute(0, 3, 1, 2) if is_last else features


def stage_of(backbone: nn.Module, index: int) -> nn.Module:
    """A stage of a timm network by its number, as in a list; timm calls them stages, blocks or layer1 .. layer4, else
    its feature_info names them. Raises ValueError if there is none of this number."""
    for stages in ("stages", "blocks"):
        if hasattr(backbone, stages):
            return layer_at(getattr(backbone, stages), index)
    layers = [module for name, module in backbone.named_children() if re.fullmatch(r"layer\d+", name)]
    about: Any = getattr(backbone, "feature_info", [])
    return layer_at(layers or [backbone.get_submodule(stage["module"]) for stage in about], index)


def last_stages(backbone: Any, image: Tensor, count: int) -> list[Tensor]:
    """Output of the last `count` stages of a timm CNN, first stage first."""
    return backbone.forward_intermediates(image, indices=count, intermediates_only=True)


def create_stages(
    timm_name: str, weights: str | None, options: Mapping[str, Any], *, count: int, output_stride: int, dilated: bool
) -> tuple[Any, list[int]]:
    """A timm CNN cut behind its last stage, and the channels of its last `count` stages.

    Args:
        weights, options: see create_backbone.
        output_stride: pixels per cell of the last stage.
        dilated: whether the convolutions after a removed stride are dilated, which keeps the spacing with which their
            filters were trained.

    Raises:
        ValueError: timm has no such model, it gives no such stages or grid, or the weights do not fit.
    """
    options = {"output_stride": output_stride, **options}
    backbone = create_backbone(timm_name, weights, options, head=HEAD, wanted=DILATED)
    if not hasattr(backbone, "prune_intermediate_layers"):
        raise ValueError(
            f"model.timm_name: timm cannot give the single stages of '{timm_name}'; choose another CNN, such as "
            "resnet50"
        )
    backbone.prune_intermediate_layers(count, prune_norm=True, prune_head=True)  # else they train without a gradient
    if not dilated:
        undilate(backbone)
    with must_run(timm_name, "CNN of single stages"), torch.no_grad():
        maps = last_stages(backbone.eval(), torch.zeros(1, 3, 64, 64), count)
    side = 64 // output_stride
    if len(maps) != count or maps[-1].shape[2:] != (side, side):
        raise ValueError(
            f"model.timm_name: '{timm_name}' gives stages {[tuple(m.shape) for m in maps]} for 64x64 px; "
            f"wanted {count}, the last on {side} x {side}: choose a CNN, or another output_stride"
        )
    return backbone.train(), [m.shape[1] for m in maps]


def undilate(module: nn.Module) -> None:
    """Set every convolution's dilation to 1, and its padding such that its grid stays the same."""
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d) and conv.dilation != (1, 1) and not isinstance(conv.padding, str):
            down, right = (padding // d for padding, d in zip(conv.padding, conv.dilation, strict=True))
            conv.padding, conv.dilation = (down, right), (1, 1)


def build_cnn(
    num_classes: int,
    *,
    timm_name: str,
    weights: str | None = None,
    output_stride: int | None = 16,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    timm_options: Mapping[str, Any] | None = None,
    shift_px: int = 0,
) -> CNN:
    """A timm network by name: resnet50, convnext_tiny, swin_tiny_patch4_window7_224, pvt_v2_b2, ...

    Args:
        num_classes: K.
        weights: null = random, 'timm' = timm's pretrained weights (downloads), else a path, loaded strictly.
        output_stride: pixels per cell of the class map, 8, 16 or 32; the last stages are dilated to get there. null =
            the network's own stride, also for networks that timm cannot dilate (Swin, PVT, NextViT); the sides of
            images must then be multiples of it.
        mean, std: RGB normalisation; null = what timm states for this name.
        timm_options: further arguments of timm's constructor.
        shift_px: pixels by which images are moved to the upper left, so that maps are at the place that they depend on;
            0 as published, see reach.py.

    Raises:
        ValueError: timm has no such model, it has no map of one stride for images of any size, or the weights do not
            fit; a shift of more than a cell.
    """
    options: dict[str, Any] = {"strict_img_size": False} if is_of_one_size(timm_name) else {}
    options |= {} if output_stride is None else {"output_stride": output_stride}
    options |= timm_options or {}
    backbone = create_backbone(timm_name, weights, options, head=HEAD, wanted=OWN)
    any_size = (
        "a network that takes images of any size, such as convnext_tiny, swin_tiny_patch4_window7_224 or pvt_v2_b2"
    )
    with must_run(timm_name, "network of {} x {} px".format(*TRIED_PX), instead=any_size), torch.no_grad():
        features = features_of(backbone.eval(), torch.zeros(1, 3, *TRIED_PX))
    if not isinstance(features, Tensor) or features.ndim != 4:
        gives = f"features {tuple(features.shape)}" if isinstance(features, Tensor) else f"a {type(features).__name__}"
        raise ValueError(
            f"model.timm_name: '{timm_name}' gives {gives} instead of a map (1, D, h, w): choose {any_size}"
        )
    stride = output_stride or TRIED_PX[0] // features.shape[-2]
    wanted = (1, backbone.num_features, *(side // stride for side in TRIED_PX))
    if features.shape != wanted:
        raise ValueError(
            f"model.timm_name: '{timm_name}' gives features {tuple(features.shape)} for {TRIED_PX[0]} x {TRIED_PX[1]} "
            f"px; wanted {wanted}: choose another output_stride, null for its own, or another network"
        )
    colours = normalisation(backbone, mean, std)
    cnn = CNN(backbone.train(), num_classes, stride, *colours, whole_cells=output_stride is None)
    cnn.shift_px = check_shift(shift_px, stride)
    if timm.models.is_model_in_modules(name_at_timm(timm_name), WINDOWED):
        cnn.no_graph = f"the windows of a {type(backbone).__name__} are padded by the size of the image"
    try_network(cnn, timm_name, stride=stride)
    return cnn
