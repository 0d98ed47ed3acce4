"""An image before the first block of a ViT: patches and prefix tokens, with their positions.

Shapes: B images, D channels, N tokens, h x w patch grid, H x W pixels.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.tensors import is_size, resize_by_products


class Embedded(NamedTuple):
    """An image before the first block.

    Attributes:
        tokens_BND: prefix tokens first.
        grid: (h, w) patches.
        rotary: rotary positions for each block; () = none.
    """

    tokens_BND: Tensor
    grid: tuple[int, int]
    rotary: Sequence[Tensor] = ()


def embed_learned(vit: Any, image: Tensor, grid: tuple[int, int]) -> Embedded:  # timm types its parts as Module | None
    """Patches and prefix tokens of a VisionTransformer with their places in its table."""
    patches_BND = vit.patch_embed.norm(embed_patches(vit.patch_embed.proj, image))
    prefix = [token for token in (vit.cls_token, vit.reg_token) if token is not None]
    placed = 0 if vit.no_embed_class else vit.num_prefix_tokens  # prefix tokens that have a position
    table_ND = resize_positions(vit.pos_embed[:, placed:], vit.patch_embed.grid_size, grid)
    if placed:
        prefix = [torch.cat(prefix, dim=1) + vit.pos_embed[:, :placed]]
    prefix_BND = [token.expand(image.shape[0], -1, -1) for token in prefix]
    tokens_BND = torch.cat([*prefix_BND, patches_BND + table_ND], dim=1)
    return Embedded(vit.norm_pre(vit.pos_drop(tokens_BND)), grid)


def embed_rotary(vit: Any, image: Tensor, grid: tuple[int, int]) -> Embedded:
    """Tokens of an Eva (DINOv3, EVA-02, PE), whose blocks turn queries and keys by their places.

    It is timm's own embedding, with a position table where there is one: pretrained features are what they were.
    """
    tokens_BND, rotary = vit._pos_embed(vit.patch_embed(image))
    of_blocks = rotary if getattr(vit, "rope_mixed", False) else [rotary] * len(vit.blocks)  # mixed: one for each
    return Embedded(vit.norm_pre(tokens_BND), grid, () if rotary is None else tuple(of_blocks))


def embed_patches(proj: nn.Conv2d, image: Tensor) -> Tensor:
    """A convolution with stride = kernel size, (B, N, D). On a GPU it is computed as a matrix product, which is faster
    for three channels."""
    if not image.is_cuda:
        return proj(image).flatten(2).transpose(1, 2)
    rows, columns = proj.kernel_size
    of_patches = image.unflatten(3, (-1, columns)).unflatten(2, (-1, rows)).permute(0, 2, 4, 1, 3, 5)
    return F.linear(of_patches.flatten(3).flatten(1, 2), proj.weight.flatten(1), proj.bias)


def resize_positions(table_1ND: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Position table for another patch grid: bicubic (a = -0.75), half-pixel centres, no antialias.

    timm's own resampling uses antialiasing, which differs from the published baseline even when enlarging.

    Args:
        table_1ND: (1, old[0] * old[1], D) without prefix tokens.

    Returns:
        (1, new[0] * new[1], D); the table itself on its own grid.
    """
    if is_size(old, new):
        return table_1ND
    table_1Dhw = table_1ND.transpose(1, 2).unflatten(2, old)
    if table_1Dhw.is_cuda:
        resized = resize_by_products(table_1Dhw, new, "bicubic")
    else:
        resized = F.interpolate(table_1Dhw, size=new, mode="bicubic", align_corners=False, antialias=False)
    return resized.flatten(2).transpose(1, 2)
