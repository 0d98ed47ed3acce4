"""Any plain timm Vision Transformer as an image classifier with patch features.

Shapes: B images, K classes, D channels, N tokens, h x w patch grid, H x W pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from wsss.models.base import Network, Outputs, create_backbone, layer_at
from wsss.models.dry_run import try_network
from wsss.tensors import is_size, resize_by_products


class ViT(Network):
    """A timm VisionTransformer with a linear classifier on its class token.

    The patch grid follows the image: sides are cut to multiples of the patch size, and the position table is
    resized to the grid (see `resize_positions`). Without a class token the mean patch takes its place.
    """

    def __init__(
        self, backbone: VisionTransformer, num_classes: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        if backbone.pos_embed is None:
            raise ValueError(f"{type(backbone).__name__}: a ViT without a position table is not supported")
        patch = int(backbone.patch_embed.patch_size[0])
        super().__init__(feature_dim=backbone.embed_dim, stride=patch, num_classes=num_classes, mean=mean, std=std)
        self.backbone = backbone

    def forward(self, image: Tensor) -> Outputs:
        tokens_BND, grid = self.embed(self.normalise(image))
        return self.read(self.backbone.blocks(tokens_BND), grid)

    def with_attention(self, image: Tensor) -> tuple[Outputs, Tensor]:
        """The forward pass, and the last block's attention from the class token to the patches, (B, h, w).

        It is averaged over heads and computed next to the block, whose own attention stays fused.

        Raises:
            ValueError: a ViT without a class token.
        """
        if self.backbone.cls_token is None:
            raise ValueError("this ViT has no class token, whose attention is wanted; choose one that has")
        tokens_BND, grid = self.embed(self.normalise(image))
        blocks: Any = self.backbone.blocks
        tokens_BND = blocks[:-1](tokens_BND)
        attention, heads = blocks[-1].attn, blocks[-1].attn.num_heads
        q, k, _ = attention.qkv(blocks[-1].norm1(tokens_BND)).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        q_BHE, k_BHNE = attention.q_norm(q)[:, :, 0], attention.k_norm(k)
        weights_BHN = (torch.einsum("bhe,bhne->bhn", q_BHE, k_BHNE) * attention.scale).float().softmax(-1)
        patches_BN = weights_BHN.mean(dim=1)[:, self.backbone.num_prefix_tokens :]
        return self.read(blocks[-1](tokens_BND), grid), patches_BN.unflatten(1, grid)

    def read(self, tokens_BND: Tensor, grid: tuple[int, int]) -> Outputs:
        """Tokens after the last block -> Outputs."""
        tokens_BND = self.backbone.norm(tokens_BND)
        patches_BDhw = self.grid_of(tokens_BND, grid)
        pooled_BD = tokens_BND[:, 0] if self.backbone.cls_token is not None else patches_BDhw.mean(dim=(2, 3))
        return Outputs(self.head(pooled_BD[..., None, None]).flatten(1), patches_BDhw, self.head(patches_BDhw))

    def embed(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Normalised image -> tokens before the first block (prefix tokens first) and the patch grid (h, w)."""
        vit: Any = self.backbone  # timm types its optional parts as Module | None
        patch = self.stride
        height, width = (side // patch for side in image.shape[-2:])
        image = image[..., : height * patch, : width * patch]
        patches_BND = embed_patches(vit.patch_embed.proj, image)
        patches_BND = vit.patch_embed.norm(patches_BND)
        prefix = [token for token in (vit.cls_token, vit.reg_token) if token is not None]
        placed = 0 if vit.no_embed_class else vit.num_prefix_tokens  # prefix tokens that have a position
        table_ND = resize_positions(vit.pos_embed[:, placed:], vit.patch_embed.grid_size, (height, width))
        prefix_BND = [token.expand(image.shape[0], -1, -1) for token in prefix]
        tokens_BND = torch.cat([*prefix_BND, patches_BND + table_ND], dim=1)
        if placed:
            positions = F.pad(vit.pos_embed[:, :placed], (0, 0, 0, patches_BND.shape[1]))
            tokens_BND = tokens_BND + positions
        return vit.norm_pre(vit.pos_drop(tokens_BND)), (height, width)

    def grid_of(self, tokens_BND: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens without the prefix as a (B, D, h, w) map."""
        return tokens_BND[:, self.backbone.num_prefix_tokens :].transpose(1, 2).unflatten(2, grid)

    def grad_cam_layer(self, index: int) -> nn.Module:
        """The first norm of a block: what its attention reads. [T] and the published code use the last block's."""
        block: Any = layer_at(self.backbone.blocks, index)
        return block.norm1

    def as_map(self, activation: Tensor, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        return self.grid_of(activation, (height // self.stride, width // self.stride))


def embed_patches(proj: nn.Conv2d, image: Tensor) -> Tensor:
    """A convolution of stride = kernel, (B, N, D). On a GPU as a product: three channels leave its kernels idle."""
    if not image.is_cuda:
        return proj(image).flatten(2).transpose(1, 2)
    rows, columns = proj.kernel_size
    of_patches = image.unflatten(3, (-1, columns)).unflatten(2, (-1, rows)).permute(0, 2, 4, 1, 3, 5)
    return F.linear(of_patches.flatten(3).flatten(1, 2), proj.weight.flatten(1), proj.bias)


def resize_positions(table_1ND: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Position table for another patch grid: bicubic (a = -0.75), half-pixel centres, no antialias.

    timm's own resampling antialiases, which changes what the published baseline computes even when enlarging.

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


def build_vit(
    num_classes: int,
    *,
    timm_name: str,
    weights: str | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    timm_options: Mapping[str, Any] | None = None,
) -> ViT:
    """A timm ViT by name.

    Args:
        num_classes: K.
        timm_name: such as vit_base_patch16_224 or deit_tiny_patch16_224.
        weights: null = random, 'timm' = timm's pretrained weights (downloads), else a path, loaded strictly.
        mean, std: RGB normalisation; null = what timm states for this name.
        timm_options: further arguments of timm's constructor (img_size, patch_size, depth, drop_path_rate, ...).

    Raises:
        ValueError: timm has no such model, it is no plain ViT or does not run as one, or the weights do not fit.
    """
    options = {"global_pool": "", **(timm_options or {})}
    plain = "a plain ViT, such as vit_base_patch16_224"
    backbone = create_backbone(timm_name, weights, options, head=("head", "fc_norm"), wanted=plain)
    if not isinstance(backbone, VisionTransformer):
        raise ValueError(f"model.timm_name: '{timm_name}' is a {type(backbone).__name__}, not {plain}")
    if type(backbone.patch_embed) is not PatchEmbed:
        raise ValueError(
            f"model.timm_name: '{timm_name}' makes its patches by {type(backbone.patch_embed).__name__}; choose {plain}"
        )
    config: Any = backbone.pretrained_cfg
    vit = ViT(backbone, num_classes, mean or config["mean"], std or config["std"])
    try_network(vit, timm_name, stride=vit.stride)
    return vit
