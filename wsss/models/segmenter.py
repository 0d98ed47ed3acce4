"""Segmenter: a ViT encoder and a mask transformer.

Shapes: B images, K foreground classes, C = K + 1 classes with background 0, D channels, N patches, h x w patch grid.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from wsss.models.base import Outputs
from wsss.models.segmentation import SegmentationNetwork, segmentation_outputs
from wsss.models.vit import ViT, build_vit

MaskNorm = Literal["layer", "scale"]


class MaskTransformer(nn.Module):
    """One learned token per class reads the patches; the mask of a class is its token's likeness to every patch.

        z, c = blocks([W x; c_0]),   masks_nc = z_n / |z_n| . c_c / |c_c|,   seg_logits = norm(masks)

    where the norm is a LayerNorm over the classes ("layer", as published), or a learned factor and bias per class
    ("scale"). Of two classes a LayerNorm keeps little but the sign of their difference: D-38.

    Source: Strudel et al. 2021 (Segmenter), section 3.2.
    """

    def __init__(self, in_dim: int, dim: int, num_classes: int, layers: int, heads: int, mask_norm: MaskNorm) -> None:
        super().__init__()
        self.project = nn.Linear(in_dim, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, num_classes, dim))
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.blocks = nn.Sequential(*(Block(dim, heads, qkv_bias=True) for _ in range(layers)))
        self.norm = nn.LayerNorm(dim)
        self.mask_norm = nn.LayerNorm(num_classes) if mask_norm == "layer" else ClassScale(num_classes)

    @property
    def weight(self) -> Tensor:
        """The class tokens, which are this classifier's weight."""
        return self.cls_token

    def forward(self, tokens_BND: Tensor) -> tuple[Tensor, Tensor]:
        """Patch tokens of the encoder -> scores (B, C, N) and the patches (B, D, N) that were compared."""
        num_classes = self.cls_token.shape[1]
        tokens_BND = torch.cat([self.project(tokens_BND), self.cls_token.expand(tokens_BND.shape[0], -1, -1)], dim=1)
        tokens_BND = self.norm(self.blocks(tokens_BND))
        patches_BND, classes_BCD = tokens_BND[:, :-num_classes], tokens_BND[:, -num_classes:]
        masks_BNC = F.normalize(patches_BND, dim=-1) @ F.normalize(classes_BCD, dim=-1).transpose(1, 2)
        return self.mask_norm(masks_BNC).transpose(1, 2), patches_BND.transpose(1, 2)


class ClassScale(nn.Module):
    """weight_c x_c + bias_c over the last axis; starts at 10 x, as likenesses within [-1, 1] make flat softmaxes."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((num_classes,), 10.0))
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x + self.bias


class Segmenter(SegmentationNetwork):
    """Patch tokens of a ViT after its final norm -> MaskTransformer. The output grid is the patch grid."""

    def __init__(
        self, encoder: ViT, num_classes: int, *, layers: int, dim: int, heads: int, mask_norm: MaskNorm
    ) -> None:
        mean, std = (values.flatten().tolist() for values in (encoder.mean, encoder.std))
        super().__init__(feature_dim=dim, stride=encoder.stride, num_classes=num_classes, mean=mean, std=std)
        in_dim = encoder.feature_dim
        decoder = MaskTransformer(in_dim, dim, num_classes + 1, layers, heads, mask_norm)
        self.head = decoder  # type: ignore[assignment]  # scores every position like the 1x1 head of other networks
        del encoder.head  # the image classifier: nothing would train it
        self.encoder = encoder

    def forward(self, image: Tensor) -> Outputs:
        embedded, vit = self.encoder.embed(self.normalise(image)), self.encoder.backbone
        tokens_BND = vit.norm(self.encoder.through(embedded))[:, vit.num_prefix_tokens :]
        grid = embedded.grid
        seg_logits_BCN, patches_BDN = self.head(tokens_BND)
        return segmentation_outputs(seg_logits_BCN.unflatten(2, grid), patches_BDN.unflatten(2, grid))


def build_segmenter(
    num_classes: int,
    *,
    timm_name: str,
    weights: str | None = None,
    decoder_layers: int = 12,
    decoder_dim: int | None = None,
    decoder_heads: int | None = None,
    mask_norm: MaskNorm = "layer",
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    timm_options: Mapping[str, Any] | None = None,
) -> Segmenter:
    """A Segmenter on a timm ViT by name; the decoder's weights are random.

    Args:
        num_classes: K, without background.
        timm_name, weights, mean, std, timm_options: of the encoder; see build_vit. The smoke paper
            has vit_base_patch16_224.dino.
        decoder_layers: blocks of the mask transformer; the smoke paper has 12, Strudel et al. 2.
        decoder_dim: its channels; null = the encoder's.
        decoder_heads: its attention heads; null = one per 64 channels.
        mask_norm: see MaskTransformer.

    Raises:
        ValueError: see build_vit; a size below 1, or decoder_heads does not divide decoder_dim.
    """
    encoder = build_vit(1, timm_name=timm_name, weights=weights, mean=mean, std=std, timm_options=timm_options)
    dim = encoder.feature_dim if decoder_dim is None else decoder_dim
    heads = max(dim // 64, 1) if decoder_heads is None else decoder_heads
    if dim < 1 or decoder_layers < 0:
        raise ValueError(f"model: wanted decoder_dim ({dim}) >= 1 and decoder_layers ({decoder_layers}) >= 0")
    if heads < 1 or dim % heads:
        raise ValueError(f"model.decoder_heads is {heads}; wanted a divisor of the decoder's {dim} channels")
    return Segmenter(encoder, num_classes, layers=decoder_layers, dim=dim, heads=heads, mask_norm=mask_norm)
