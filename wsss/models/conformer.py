"""Conformer: a CNN and a transformer side by side that exchange features; with TransCAM, its attention-refined CAM.

Shapes: B images, K classes, D channels, N patches (T = N + 1 tokens, class token first), h x w grid, H x W pixels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.models.base import IMAGENET_MEAN, IMAGENET_STD, Network, Outputs, layer_at, require_counts
from wsss.models.conformer_blocks import AttentionMean, Block, ConvBlock, ConvTransBlock
from wsss.models.weights import load_weights
from wsss.tensors import full_precision, resize

STEM_DIM = 64
CONV_STRIDE = 16  # of the last convolutional map


class DualBackbone(nn.Module):
    """The two branches without classifiers; parameters are named as in the published checkpoints.

    Three stages of depth / 3 blocks, whose maps have strides 4, 8 and 16 and double their channels each time. The last
    block keeps stride 16, while the published one goes to 32 before pooling, so that map and patches have the same
    grid.

    Source: Peng et al. 2021 (Conformer), section 3 and Table 1.
    """

    def __init__(
        self,
        *,
        patch_size: int,
        channel_ratio: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.patch_size, self.embed_dim, self.depth = patch_size, embed_dim, depth
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.conv1 = nn.Conv2d(3, STEM_DIM, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_DIM)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        dim = STEM_DIM * channel_ratio
        coupling = patch_size // 4  # cells of the map per patch
        rates = [drop_path * i / (depth - 1) for i in range(depth)]
        self.conv_1 = ConvBlock(STEM_DIM, dim, project=True)
        self.trans_patch_conv = nn.Conv2d(STEM_DIM, embed_dim, coupling, stride=coupling)
        self.trans_1 = Block(embed_dim, num_heads, mlp_ratio, rates[0])
        for number in range(2, depth + 1):
            first = (number - 1) % (depth // 3) == 0  # of the second or third stage
            in_dim, dim, coupling = (dim, 2 * dim, coupling // 2) if first else (dim, dim, coupling)
            block = ConvTransBlock(
                in_dim,
                dim,
                Block(embed_dim, num_heads, mlp_ratio, rates[number - 1]),
                embed_dim=embed_dim,
                coupling=coupling,
                stride=2 if first else 1,
                last=number == depth,
            )
            self.add_module(f"conv_trans_{number}", block)
        self.conv_dim = dim
        self.trans_norm = nn.LayerNorm(embed_dim)
        self.apply(init_weights)
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def forward(self, image: Tensor, attention: AttentionMean | None = None) -> tuple[Tensor, Tensor]:
        """Normalised image of sides that are multiples of patch_size -> (B, D, H/16, W/16), (B, T, D')."""
        stem_BDhw = self.maxpool(F.relu(self.bn1(self.conv1(image))))
        x_BDhw, _ = self.conv_1(stem_BDhw)
        patches_BND = self.trans_patch_conv(stem_BDhw).flatten(2).transpose(1, 2)
        tokens_BTD = torch.cat([self.cls_token.expand(image.shape[0], -1, -1), patches_BND], dim=1)
        tokens_BTD = self.trans_1(tokens_BTD, attention)
        for number in range(2, self.depth + 1):
            x_BDhw, tokens_BTD = getattr(self, f"conv_trans_{number}")(x_BDhw, tokens_BTD, attention)
        return x_BDhw, self.trans_norm(tokens_BTD)


def init_weights(module: nn.Module) -> None:
    """The initial weights of one layer, as published; for Module.apply."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class Conformer(Network):
    """A Conformer with a classifier on either branch, and TransCAM.

        class_map = W * map + b,   cls_logits = mean over h, w of class_map,   further_logits = V class_token + c

    In eval mode `maps` has 'transcam', the class map refined by the transformer's attention, without gradient; train
    mode computes no attention matrix. `head` reads the map of the CNN, `patches_BDhw` are the transformer's tokens.
    Sides are cut to multiples of the patch size, as ViT does.

    Source: Li et al. 2022 (TransCAM), with a loss for each classifier instead of one for their sum (D-39).
    """

    def __init__(self, backbone: DualBackbone, num_classes: int, mean: Sequence[float], std: Sequence[float]) -> None:
        stride = backbone.patch_size
        super().__init__(feature_dim=backbone.conv_dim, stride=stride, num_classes=num_classes, mean=mean, std=std)
        self.feature_dim = backbone.embed_dim
        self.backbone = backbone
        self.trans_head = nn.Linear(backbone.embed_dim, num_classes)
        init_weights(self.trans_head)

    def forward(self, image: Tensor) -> Outputs:
        height, width = (side // self.stride for side in image.shape[-2:])
        image = self.normalise(image[..., : height * self.stride, : width * self.stride])
        attention = None if self.training else AttentionMean()
        map_BDhw, tokens_BTD = self.backbone(image, attention)
        class_map_BKhw = self.head(map_BDhw)
        return Outputs(
            class_map_BKhw.mean(dim=(2, 3)),
            tokens_BTD[:, 1:].transpose(1, 2).unflatten(2, (height, width)),
            class_map_BKhw,
            (self.trans_head(tokens_BTD[:, 0]),),
            {} if attention is None else {"transcam": transcam(class_map_BKhw, attention.result(), (height, width))},
        )

    def grad_cam_layer(self, index: int) -> nn.Module:
        """The last activation of a block of the CNN, -1 the last."""
        numbers = range(2, self.backbone.depth + 1)
        fusions = [getattr(self.backbone, f"conv_trans_{number}").fusion_block for number in numbers]
        return layer_at([self.backbone.conv_1, *fusions], index).act3

    def as_map(self, activation: Tensor, image: Tensor) -> Tensor:
        return activation


@torch.no_grad()
def transcam(class_map_BKhw: Tensor, attention_BNN: Tensor, grid: tuple[int, int]) -> Tensor:
    """Class map spread by attention: refined_i = sum_j A_ij relu(class_map)_j, in float32, on the patch grid.

    Args:
        attention_BNN: see AttentionMean.
        grid: h, w of the patches; a class map of another size is resized to it, bilinearly.

    Returns:
        (B, K, h, w) >= 0.

    Source: Li et al. 2022 (TransCAM), section 3.3; with the ReLU that the smoke paper's code lacks (D-39).
    """
    cam_BKhw = resize(F.relu(class_map_BKhw.float()), grid)
    with full_precision(cam_BKhw):
        return (cam_BKhw.flatten(2) @ attention_BNN.transpose(1, 2)).unflatten(2, grid)


def build_conformer(
    num_classes: int,
    *,
    weights: str | None = None,
    patch_size: int = 16,
    channel_ratio: int = 4,
    embed_dim: int = 384,
    depth: int = 12,
    num_heads: int = 6,
    mlp_ratio: float = 4.0,
    drop_path: float = 0.0,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
) -> Conformer:
    """A Conformer; the defaults are Conformer-S. Conformer-Ti has channel_ratio 1, Conformer-B 6, 576 and 9 heads.

    Args:
        num_classes: K.
        weights: null = random, else a path, loaded strictly but for the two classifiers.
        patch_size: a multiple of 16, the stride of the last map of the CNN.
        channel_ratio: channels of the first stage over 64.
        depth: transformer blocks, a multiple of 3.
        drop_path: rate of the last transformer block; it grows linearly from 0.

    Raises:
        ValueError: a size that does not fit the structure, or weights that do not fit.
    """
    require_counts(channel_ratio=channel_ratio, num_heads=num_heads)
    for name, value, divisor in (
        ("patch_size", patch_size, CONV_STRIDE),
        ("depth", depth, 3),
        ("embed_dim", embed_dim, num_heads),
    ):
        if value < divisor or value % divisor:
            raise ValueError(f"model.{name} is {value}; wanted a multiple of {divisor}")
    if not 0 <= drop_path < 1:
        raise ValueError(f"model.drop_path is {drop_path}; wanted a rate in [0, 1)")
    backbone = DualBackbone(
        patch_size=patch_size,
        channel_ratio=channel_ratio,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        mlp_ratio=mlp_ratio,
        drop_path=drop_path,
    )
    if weights is not None:
        load_weights(backbone, weights, head=("conv_cls_head", "trans_cls_head"))
    return Conformer(backbone, num_classes, mean, std)
