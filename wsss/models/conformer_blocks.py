"""The blocks of a Conformer: its two branches, the units that couple them, and the mean of its attention.

Parameters are named as in the published checkpoints.
Shapes: B images, D channels, N patches, T = N + 1 tokens with the class token first, n heads of d channels, h x w grid.

Source: Peng et al. 2021 (Conformer), section 3.
"""

from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

BatchNorm = partial(nn.BatchNorm2d, eps=1e-6)
LayerNorm = partial(nn.LayerNorm, eps=1e-6)


class AttentionMean:
    """The mean over heads and layers of the patch-to-patch attention, summed up as the layers run."""

    def __init__(self) -> None:
        self.sum_BNN: Tensor | None = None
        self.layers = 0

    @torch.no_grad()
    def add(self, q_BnTd: Tensor, k_BnTd: Tensor) -> None:
        """Add one layer's attention, from queries and keys that are not scaled yet."""
        scores = (q_BnTd * q_BnTd.shape[-1] ** -0.5) @ k_BnTd.transpose(-2, -1)
        attention_BNN = scores.softmax(dim=-1, dtype=torch.float32).mean(dim=1)[:, 1:, 1:]
        self.sum_BNN = attention_BNN if self.sum_BNN is None else self.sum_BNN + attention_BNN
        self.layers += 1

    def result(self) -> Tensor:
        """(B, N, N), rows attend to columns; a row sums to 1 less what it gives the class token. Raises ValueError
        where nothing was added."""
        if self.sum_BNN is None:
            raise ValueError("no attention was added: give this object to the network's forward pass first")
        return self.sum_BNN / self.layers


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens_BTD: Tensor, attention: AttentionMean | None) -> Tensor:
        q, k, v = self.qkv(tokens_BTD).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if attention is not None:
            attention.add(q, k)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A pre-norm transformer block that can add its attention to an AttentionMean."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.attn = Attention(dim, heads)
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens_BTD: Tensor, attention: AttentionMean | None) -> Tensor:
        tokens_BTD = tokens_BTD + self.drop_path(self.attn(self.norm1(tokens_BTD), attention))
        return tokens_BTD + self.drop_path(self.mlp(self.norm2(tokens_BTD)))


class ConvBlock(nn.Module):
    """A bottleneck of 1x1, 3x3 and 1x1 convolutions with a residual; the middle is a quarter as wide."""

    def __init__(self, in_dim: int, out_dim: int, stride: int = 1, *, project: bool) -> None:
        super().__init__()
        middle = out_dim // 4
        self.conv1, self.bn1, self.act1 = nn.Conv2d(in_dim, middle, 1, bias=False), BatchNorm(middle), nn.ReLU()
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, padding=1, bias=False)
        self.bn2, self.act2 = BatchNorm(middle), nn.ReLU()
        self.conv3, self.bn3, self.act3 = nn.Conv2d(middle, out_dim, 1, bias=False), BatchNorm(out_dim), nn.ReLU()
        self.project = project
        if project:
            self.residual_conv = nn.Conv2d(in_dim, out_dim, 1, stride, bias=False)
            self.residual_bn = BatchNorm(out_dim)

    def forward(self, x_BDhw: Tensor, coupled_BDhw: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The block's output and its middle map; `coupled` joins before the 3x3 convolution."""
        middle_BDhw = self.act1(self.bn1(self.conv1(x_BDhw)))
        if coupled_BDhw is not None:
            middle_BDhw = middle_BDhw + coupled_BDhw
        middle_BDhw = self.act2(self.bn2(self.conv2(middle_BDhw)))
        residual_BDhw = self.residual_bn(self.residual_conv(x_BDhw)) if self.project else x_BDhw
        return self.act3(self.bn3(self.conv3(middle_BDhw)) + residual_BDhw), middle_BDhw


class FCUDown(nn.Module):
    """Convolutional map -> patch tokens: 1x1 convolution, average pooling, LayerNorm, GELU."""

    def __init__(self, in_dim: int, out_dim: int, stride: int) -> None:
        super().__init__()
        self.conv_project = nn.Conv2d(in_dim, out_dim, kernel_size=1)
        self.sample_pooling = nn.AvgPool2d(stride)
        self.ln = LayerNorm(out_dim)

    def forward(self, map_BDhw: Tensor) -> Tensor:
        pooled_BDhw = self.sample_pooling(self.conv_project(map_BDhw))
        return F.gelu(self.ln(pooled_BDhw.flatten(2).transpose(1, 2)))


class FCUUp(nn.Module):
    """Patch tokens -> convolutional map: 1x1 convolution, BatchNorm, ReLU, nearest neighbour to the map's grid."""

    def __init__(self, in_dim: int, out_dim: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv_project = nn.Conv2d(in_dim, out_dim, kernel_size=1)
        self.bn = BatchNorm(out_dim)

    def forward(self, patches_BND: Tensor, grid: tuple[int, int]) -> Tensor:
        patches_BDhw = patches_BND.transpose(1, 2).unflatten(2, (grid[0] // self.stride, grid[1] // self.stride))
        return F.interpolate(F.relu(self.bn(self.conv_project(patches_BDhw))), size=grid)


class ConvTransBlock(nn.Module):
    """Two convolution blocks and a transformer block, coupled both ways. The first may halve the map.

    The class token gets nothing from the map and is added to itself: the published network does so, and its weights
    expect it."""

    def __init__(
        self, in_dim: int, out_dim: int, block: Block, *, embed_dim: int, coupling: int, stride: int, last: bool
    ) -> None:
        super().__init__()
        self.cnn_block = ConvBlock(in_dim, out_dim, stride, project=in_dim != out_dim)
        self.fusion_block = ConvBlock(out_dim, out_dim, project=last)
        self.squeeze_block = FCUDown(out_dim // 4, embed_dim, coupling)
        self.expand_block = FCUUp(embed_dim, out_dim // 4, coupling)
        self.trans_block = block

    def forward(self, x_BDhw: Tensor, tokens_BTD: Tensor, attention: AttentionMean | None) -> tuple[Tensor, Tensor]:
        x_BDhw, middle_BDhw = self.cnn_block(x_BDhw)
        coupled_BTD = torch.cat([tokens_BTD[:, :1], self.squeeze_block(middle_BDhw)], dim=1)
        tokens_BTD = self.trans_block(tokens_BTD + coupled_BTD, attention)
        grid = (middle_BDhw.shape[-2], middle_BDhw.shape[-1])
        x_BDhw, _ = self.fusion_block(x_BDhw, self.expand_block(tokens_BTD[:, 1:], grid))
        return x_BDhw, tokens_BTD
