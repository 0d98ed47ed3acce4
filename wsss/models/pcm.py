"""A CNN whose class maps are spread over similar places: the pixel correlation module (PCM).

Shapes: B images, K classes, D channels, N = h * w positions, h x w feature grid, H x W pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.models.base import Network, Outputs
from wsss.models.cnn import create_stages, last_stages, stage_of
from wsss.models.dry_run import try_network
from wsss.models.reach import check_shift
from wsss.models.weights import normalisation
from wsss.tensors import at_least_float32, full_precision, resize

EPS = 1e-5
BACKGROUND_SEED = 0


def affinity_of(features_BDhw: Tensor) -> Tensor:
    """The share that every position takes from every other one, in float32 or better.

        g_i = f_i / (|f_i| + 1e-5),   a_ij = relu(g_i . g_j),   A_ij = a_ij / (sum_i a_ij + 1e-5)

    Returns:
        (B, N, N) >= 0 whose columns sum to 1, or to 0 where a feature is zero.

    Source: Wang et al. 2020 (SEAM), Eq. 6-7, in the form of the smoke paper's teacher (D-83, golden `pcm`).
    """
    features_BDN = at_least_float32(features_BDhw.flatten(2))
    with full_precision(features_BDN):
        unit_BDN = features_BDN / (torch.linalg.vector_norm(features_BDN, dim=1, keepdim=True) + EPS)
        affinity_BNN = F.relu(unit_BDN.transpose(1, 2) @ unit_BDN)
        return affinity_BNN / (affinity_BNN.sum(dim=1, keepdim=True) + EPS)


def correlate(map_BKhw: Tensor, affinity_BNN: Tensor) -> Tensor:
    """Y_j = sum_i X_i A_ij for every channel: (B, K, h, w) in the affinity's precision or better."""
    with full_precision(map_BKhw):
        map_BKN = at_least_float32(map_BKhw.flatten(2))
        return (map_BKN @ affinity_BNN).unflatten(2, map_BKhw.shape[-2:])


class PCM(Network):
    """Last stages of a CNN, a 3x3 convolution, a 1x1 classifier at every position, and the PCM on its K maps.

        X = relu(norm(conv6(layer4))),   M = W X                                     W, b the classifier
        A = affinity_of(f9 [image, f8_3(layer3), f8_4(layer4)])                      all on the grid of layer4
        class_map = (M + b) + (M A + b),   cls_logits = mean over h, w of class_map

    The published code applies the PCM to the D channels of X and classifies after. Both are linear, so that
    W (X A) = (W X) A: the same map from N N K multiplications in place of N N D. The bias enters twice, as published.

    `Outputs.maps`: `no_pcm` (B, K, h, w) is M + b; with `background`, `background` (B, 1, h, w) is the PCM-summed map
    of one more 1x1 read-out of X that is random and never trained. It is half of the published consistency target
    (D-02) and enters no logit. It has its own fixed seed and draws nothing from the global generator.

    Args:
        backbone: a timm CNN that gives its last two stages; see create_stages.
        stage_dims: channels of these two.
        conv_dim, f8_dim, affinity_dim: channels of conv6; of f8_3 and of f8_4; of f9.

    Source: smoke paper, section 3.1, in the form of its code (D-25, D-83).
    """

    def __init__(
        self,
        backbone: nn.Module,
        stage_dims: Sequence[int],
        num_classes: int,
        stride: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        conv_dim: int,
        f8_dim: int,
        affinity_dim: int,
        background: bool,
    ) -> None:
        super().__init__(feature_dim=conv_dim, stride=stride, num_classes=num_classes, mean=mean, std=std)
        dim3, dim4 = stage_dims
        self.backbone: Any = backbone
        conv = nn.Conv2d(dim4, conv_dim, kernel_size=3, padding=1, bias=False)
        self.conv6 = nn.Sequential(conv, nn.BatchNorm2d(conv_dim), nn.ReLU(inplace=True))
        self.f8_3 = nn.Conv2d(dim3, f8_dim, kernel_size=1)
        self.f8_4 = nn.Conv2d(dim4, f8_dim, kernel_size=1)
        self.f9 = nn.Conv2d(3 + 2 * f8_dim, affinity_dim, kernel_size=1)
        for layer in (conv, self.f8_3, self.f8_4, self.f9):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out")  # N(0, 2 / (k k out)): the published one
        for layer in (self.f8_3, self.f8_4, self.f9):
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # there is one; torch says maybe
        self.background = random_readout(conv_dim) if background else None

    def forward(self, image: Tensor) -> Outputs:
        image = self.normalise(image)
        layer3_BDhw, layer4_BDhw = last_stages(self.backbone, image, 2)
        features_BDhw = self.conv6(layer4_BDhw)
        affinity_BNN = affinity_of(self.affinity_features(image, layer3_BDhw, layer4_BDhw))
        summed, plain = self.class_maps(features_BDhw, affinity_BNN)
        num_classes = self.head.out_channels
        class_map_BKhw = summed[:, :num_classes]
        maps = {"no_pcm": plain[:, :num_classes]}
        if self.background is not None:
            maps["background"] = summed[:, num_classes:]
        return Outputs(class_map_BKhw.mean(dim=(2, 3)), features_BDhw, class_map_BKhw, maps=maps)

    def affinity_features(self, image: Tensor, layer3_BDhw: Tensor, layer4_BDhw: Tensor) -> Tensor:
        """f9 of the normalised image and both stages, (B, affinity_dim, h, w) on the grid of layer4."""
        grid = layer4_BDhw.shape[-2:]
        small = F.interpolate(image, size=grid, mode="bilinear", align_corners=True)  # corners kept, as published
        from3 = resize(self.f8_3(layer3_BDhw), grid)
        from4 = self.f8_4(layer4_BDhw)
        return self.f9(torch.cat([small.to(from4.dtype), from3, from4], dim=1))

    def class_maps(self, features_BDhw: Tensor, affinity_BNN: Tensor) -> tuple[Tensor, Tensor]:
        """Maps with and without the PCM, each (B, K, h, w), or (B, K + 1, h, w) with the background last."""
        weight, bias = self.head.weight, self.head.bias
        if self.background is not None:
            weight = torch.cat([weight, self.background.weight])
            bias = torch.cat([bias, self.background.bias])  # type: ignore[list-item]  # as above
        bias_K11 = bias.view(-1, 1, 1)  # type: ignore[union-attr]  # as above
        raw = F.conv2d(features_BDhw, weight)
        plain = raw + bias_K11
        return plain + correlate(raw, affinity_BNN) + bias_K11, plain

    def grad_cam_layer(self, index: int) -> nn.Module:
        """A stage of the network, -1 the last."""
        return stage_of(self.backbone, index)

    def as_map(self, activation: Tensor, image: Tensor) -> Tensor:
        return activation


def random_readout(dim: int) -> nn.Conv2d:
    """A frozen 1x1 convolution to one channel with weights from N(0, 1), the same on every call, and bias 0."""
    readout = nn.utils.skip_init(nn.Conv2d, dim, 1, kernel_size=1)
    with torch.no_grad():
        readout.weight.normal_(generator=torch.Generator().manual_seed(BACKGROUND_SEED))
        readout.bias.zero_()
    return readout.requires_grad_(False)


def build_pcm(
    num_classes: int,
    *,
    timm_name: str,
    weights: str | None = None,
    output_stride: int = 16,
    dilated: bool = True,
    conv_dim: int | None = None,
    f8_dim: int = 256,
    affinity_dim: int = 512,
    background: bool = False,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    timm_options: Mapping[str, Any] | None = None,
    shift_px: int = 0,
) -> PCM:
    """A timm CNN with the pixel correlation module: resnet50 and resnet101 in the paper.

    Args:
        num_classes: K.
        weights: null = random, 'timm' = timm's pretrained weights (downloads), else a path, loaded strictly.
        output_stride: pixels per cell of the class map, 8, 16 or 32.
        dilated: dilate what lies behind a removed stride; false = stride 1 and nothing else, as published.
        conv_dim: channels of the 3x3 convolution; null = as the last stage has.
        f8_dim: channels that each of the two stages gives to the affinity; affinity_dim: channels of its features.
        background: give the map of a random, never trained read-out as well; see PCM.
        mean, std: RGB normalisation; null = what timm states for this name.
        timm_options: further arguments of timm's constructor.
        shift_px: pixels by which images are moved to the upper left, so that maps lie where they look; 0 as published,
            see reach.py.

    Raises:
        ValueError: timm has no such model, it has no two stages that fit, or the weights do not fit; or a shift of
            more than a cell.
    """
    backbone, stage_dims = create_stages(
        timm_name, weights, timm_options or {}, count=2, output_stride=output_stride, dilated=dilated
    )
    pcm = PCM(
        backbone,
        stage_dims,
        num_classes,
        output_stride,
        *normalisation(backbone, mean, std),
        conv_dim=stage_dims[-1] if conv_dim is None else conv_dim,
        f8_dim=f8_dim,
        affinity_dim=affinity_dim,
        background=background,
    )
    pcm.shift_px = check_shift(shift_px, output_stride)
    try_network(pcm, timm_name, stride=output_stride)
    return pcm
