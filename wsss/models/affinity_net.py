"""The network that gives AffinityNet's features.

Shapes: B images, D channels, h x w feature grid.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.models.base import check_deviation
from wsss.models.cnn import create_stages, last_stages
from wsss.models.dry_run import try_network
from wsss.models.weights import normalisation
from wsss.tensors import resize


class AffinityHead(nn.Module):
    """Three stages of a CNN -> features whose differences tell which positions belong together.

        f = f9 [elu(f8_s(stage_s)) for the three stages s], all on the grid of the middle one (16 pixels per cell)

    Args:
        stage_dims: channels of the stages.
        widths: channels to which each stage is reduced.
        affinity_dim: D.

    Raises:
        ValueError: a width below 1.

    Source: smoke paper's code (D-31): 512, 1024, 2048 -> 64, 128, 320 -> 512.
    """

    def __init__(
        self, stage_dims: Sequence[int], *, widths: tuple[int, int, int] = (64, 128, 320), affinity_dim: int = 512
    ) -> None:
        super().__init__()
        if min(*widths, affinity_dim) < 1:
            raise ValueError(f"model.widths is {widths}, model.affinity_dim {affinity_dim}; wanted 1 or more channels")
        self.f8 = nn.ModuleList(nn.Conv2d(dim, width, 1) for dim, width in zip(stage_dims, widths, strict=True))
        self.f9 = nn.Conv2d(sum(widths), affinity_dim, kernel_size=1)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        grid = stages[1].shape[-2:]
        narrow = [F.elu(resize(conv(stage), grid)) for conv, stage in zip(self.f8, stages, strict=True)]
        return self.f9(torch.cat(narrow, dim=1))


class AffinityNet(nn.Module):
    """Image in [0, 1] -> affinity features (B, D, h, w), 16 pixels per cell, for pair_affinity.

    Every BatchNorm is frozen: it keeps the statistics and the scales of the initial weights, also in train().
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, head: AffinityHead, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        check_deviation(std)
        self.backbone: Any = backbone
        self.head = head
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        for norm in self.norms():
            norm.requires_grad_(False)
        self.train(self.training)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(last_stages(self.backbone, (image - self.mean) / self.std, 3))

    def norms(self) -> list[nn.Module]:
        """Every BatchNorm in it."""
        return [module for module in self.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]

    def train(self, mode: bool = True) -> "AffinityNet":
        super().train(mode)
        for norm in self.norms():
            norm.eval()
        return self


def build_affinity_net(
    num_classes: int,
    *,
    timm_name: str,
    weights: str | None = None,
    output_stride: int = 16,
    dilated: bool = True,
    widths: tuple[int, int, int] = (64, 128, 320),
    affinity_dim: int = 512,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    timm_options: Mapping[str, Any] | None = None,
) -> AffinityNet:
    """AffinityNet on a timm CNN by name: resnet101 in the smoke paper. Options as in build_pcm.

    Args:
        num_classes: K; has no effect on the affinities.

    Raises:
        ValueError: timm has no such model, it has no three stages that fit, or the weights do not fit.
    """
    options = timm_options or {}
    backbone, dims = create_stages(timm_name, weights, options, count=3, output_stride=output_stride, dilated=dilated)
    head = AffinityHead(dims, widths=widths, affinity_dim=affinity_dim)
    network = AffinityNet(backbone, head, *normalisation(backbone, mean, std))
    try_network(network, timm_name, stride=output_stride, grad_cam=False)
    return network
