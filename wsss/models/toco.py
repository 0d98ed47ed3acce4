"""ToCo's network: a ViT that classifies twice, before its end and at it, and decodes its patches into a segmentation.

Shapes: B images, K foreground classes, C = K + 1, D channels, h x w patch grid, H x W pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from wsss.models.base import IMAGENET_MEAN, IMAGENET_STD, Outputs
from wsss.models.heads import LargeFOV
from wsss.models.segmentation import foreground_probabilities
from wsss.models.vit import ViT, build_vit


@dataclass(frozen=True)
class Tokens:
    """What the encoder makes of a batch.

    Attributes:
        cls_BD: class token after the final norm.
        patches_BDhw: patch tokens after the final norm.
        aux_BDhw: patch tokens of the residual stream after the auxiliary block, before any norm.
    """

    cls_BD: Tensor
    patches_BDhw: Tensor
    aux_BDhw: Tensor

    def __getitem__(self, images: slice) -> "Tokens":
        return Tokens(self.cls_BD[images], self.patches_BDhw[images], self.aux_BDhw[images])

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w)."""
        height, width = self.patches_BDhw.shape[-2:]
        return height, width


class ToCoNet(ViT):
    """A ViT with a frozen position table, if any, two classifiers without bias, max pooling and a LargeFOV decoder.

        cls_logits = head(max over positions of the final patches), the same for aux_head on the auxiliary patches

    CAM kinds: `class_map` of the final classifier, `aux_map` of the auxiliary one, `seg` of the decoder.

    Args:
        aux_block: number of the block, as in a list, whose output the auxiliary classifier reads.
        decoder_dim, dilation: see LargeFOV.

    Raises:
        ValueError: the ViT has no such block, or no class token; a size below 1.

    Source: ToCo, section 3, in the form of its code (D-78).
    """

    def __init__(
        self,
        backbone: VisionTransformer | Eva,
        num_classes: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        *,
        aux_block: int = -3,
        decoder_dim: int = 512,
        dilation: int = 5,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(backbone, num_classes, mean, std, checkpointing=checkpointing)
        depth = len(backbone.blocks)
        if not -depth <= aux_block < depth:
            raise ValueError(f"model.aux_block is {aux_block}, but this ViT has {depth} blocks; choose one of them")
        if backbone.cls_token is None:
            raise ValueError("model toco contrasts class tokens, but this ViT has none; choose another model.timm_name")
        if decoder_dim < 1 or dilation < 1:
            raise ValueError(f"model: wanted decoder_dim ({decoder_dim}) and dilation ({dilation}) >= 1")
        self.aux_block = aux_block % depth
        if backbone.pos_embed is not None:
            backbone.pos_embed.requires_grad_(False)
        self.head = nn.Conv2d(self.feature_dim, num_classes, 1, bias=False)
        self.aux_head = nn.Conv2d(self.feature_dim, num_classes, 1, bias=False)
        self.decoder = LargeFOV(self.feature_dim, num_classes + 1, dim=decoder_dim, dilation=dilation)

    def encode(self, image: Tensor) -> Tokens:
        """(B, 3, H, W) RGB in [0, 1] -> the tokens of all that reads them."""
        embedded, cut = self.embed(self.normalise(image)), self.aux_block + 1
        middle_BND = self.through(embedded, 0, cut)
        tokens_BND = self.backbone.norm(self.through(embedded._replace(tokens_BND=middle_BND), cut))
        grid = embedded.grid
        return Tokens(tokens_BND[:, 0], self.grid_of(tokens_BND, grid), self.grid_of(middle_BND, grid))

    def encode_aux(self, image: Tensor) -> Tensor:
        """`Tokens.aux_BDhw` alone, without the blocks behind it."""
        embedded = self.embed(self.normalise(image))
        return self.grid_of(self.through(embedded, 0, self.aux_block + 1), embedded.grid)

    def classify(self, patches_BDhw: Tensor, aux_BDhw: Tensor) -> tuple[Tensor, Tensor]:
        """Class scores (B, K) of the final and of the auxiliary classifier."""
        return max_pooled(self.head, patches_BDhw), max_pooled(self.aux_head, aux_BDhw)

    def forward(self, image: Tensor) -> Outputs:
        tokens = self.encode(image)
        cls_logits_BK, aux_logits_BK = self.classify(tokens.patches_BDhw, tokens.aux_BDhw)
        seg_logits_BChw = self.decoder(tokens.patches_BDhw)
        maps = {"aux_map": self.aux_head(tokens.aux_BDhw), "seg": foreground_probabilities(seg_logits_BChw)}
        return Outputs(
            cls_logits_BK,
            tokens.patches_BDhw,
            self.head(tokens.patches_BDhw),
            (aux_logits_BK,),
            maps,
            seg_logits_BChw,
        )


def max_pooled(head: nn.Conv2d, patches_BDhw: Tensor) -> Tensor:
    """A 1x1 classifier's scores (B, K) of the largest value of each channel."""
    return head(patches_BDhw.amax(dim=(2, 3), keepdim=True)).flatten(1)


def build_toco(
    num_classes: int,
    *,
    timm_name: str,
    weights: str | None = None,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
    aux_block: int = -3,
    decoder_dim: int = 512,
    dilation: int = 5,
    timm_options: Mapping[str, Any] | None = None,
    checkpointing: bool = False,
) -> ToCoNet:
    """ToCo's network on a timm ViT.

    Args:
        num_classes: K.
        timm_name, weights, timm_options: see build_vit. Published: vit_base_patch16_224.orig_in21k_ft_in1k.
        mean, std: ImageNet's, although those weights were made with 0.5: so does ToCo.
        aux_block, decoder_dim, dilation: see ToCoNet.
        checkpointing: see ViT.

    Raises:
        ValueError: timm has no such model, it is no ViT of one grid, or the weights do not fit.
    """
    vit = build_vit(num_classes, timm_name=timm_name, weights=weights, timm_options=timm_options)
    return ToCoNet(
        vit.backbone,
        num_classes,
        mean,
        std,
        aux_block=aux_block,
        decoder_dim=decoder_dim,
        dilation=dilation,
        checkpointing=checkpointing,
    )
