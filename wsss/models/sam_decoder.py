"""SAM fine-tuning: the mask decoder of Segment Anything and one task token are trained, its image encoder is not.

Shapes: B images, D decoder channels (256), d upscaled channels (32), T tokens, g x g image embedding, h x w map (4g),
H x W pixels, S side of the square that the encoder sees.
"""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.extras import needs
from wsss.models.base import Network, Outputs, require_counts
from wsss.models.embedding import resize_positions
from wsss.models.sam import Variant, load_into, load_sam

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

ENCODER = {"embed_dim", "depth", "num_heads"}
UPSCALE = 4  # the decoder's map is this much finer than the image embedding


class SamDecoder(Network):
    """One foreground class from SAM's own mask decoder, prompted with a learned token instead of points.

        z = <hyper(mask token 0), upscaled embedding>,   seg_logits = [0, z],   class_map = z,   cls_logits = max z

    The sparse prompt is the task token, the dense prompt is zero. Of the decoder only what its single mask needs is
    kept: the IoU head and the three further masks would get no gradient. The encoder runs without gradients and stays
    in eval mode; it is part of the state, so that a checkpoint is whole without the published file.

    `patches` are the upscaled embedding. Images are resized so that their longer side is S and padded right and
    below, as SAM was trained; the padding is cut off the maps. `head` is not used, and frozen.

    Raises:
        ValueError: more than one class.

    Source: smoke paper, Table 4.2 (D-37); Kirillov et al. 2023, appendix A.
    """

    position_1Dgg: Tensor
    equal_on_ranks: ClassVar[tuple[str, ...]] = ("position_1Dgg",)  # a constant; see Method

    def __init__(self, sam: "Sam", num_classes: int) -> None:
        if num_classes != 1:
            raise ValueError(
                f"model.name: sam_decoder gives one mask, but the data have {num_classes} classes; choose another model"
            )
        decoder, patch = sam.mask_decoder, sam.image_encoder.patch_embed.proj.kernel_size[0]
        super().__init__(
            feature_dim=decoder.transformer_dim // 8,
            stride=patch // UPSCALE,
            num_classes=1,
            mean=(sam.pixel_mean.flatten() / 255).tolist(),
            std=(sam.pixel_std.flatten() / 255).tolist(),
        )
        self.head.requires_grad_(False)
        self.image_size = int(sam.image_encoder.img_size)
        self.image_encoder = sam.image_encoder.eval().requires_grad_(False)
        self.register_buffer("position_1Dgg", sam.prompt_encoder.get_dense_pe().detach())
        self.iou_token = nn.Parameter(decoder.iou_token.weight.detach().clone())
        self.mask_tokens = nn.Parameter(decoder.mask_tokens.weight.detach().clone())
        self.task_token = nn.Parameter(torch.randn(1, decoder.transformer_dim) * 0.02)
        self.transformer = decoder.transformer
        self.upscaling = decoder.output_upscaling
        self.hyper = decoder.output_hypernetworks_mlps[0]

    def train(self, mode: bool = True) -> "SamDecoder":
        super().train(mode)
        self.image_encoder.eval()
        return self

    def forward(self, image: Tensor) -> Outputs:
        square, (rows, columns) = self.fit(image)
        with torch.no_grad():
            embedding_BDgg = self.image_encoder(square)
        patches_Bdhw, filter_Bd = self.decode(embedding_BDgg)
        patches_Bdhw = patches_Bdhw[..., :rows, :columns]
        logit_B1hw = torch.einsum("bd,bdhw->bhw", filter_Bd, patches_Bdhw)[:, None]
        return Outputs(
            logit_B1hw.amax(dim=(-2, -1)),
            patches_Bdhw,
            logit_B1hw,
            seg_logits_BChw=torch.cat([torch.zeros_like(logit_B1hw), logit_B1hw], dim=1),
        )

    def fit(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Image in [0, 1] -> normalised (B, 3, S, S), and the rows and columns of the map that show the image."""
        scale = self.image_size / max(image.shape[-2:])
        height, width = (max(round(side * scale), 1) for side in image.shape[-2:])
        resized = F.interpolate(image, (height, width), mode="bilinear", align_corners=False, antialias=True)
        padded = F.pad(self.normalise(resized), (0, self.image_size - width, 0, self.image_size - height))
        return padded, (-(-height // self.stride), -(-width // self.stride))

    def decode(self, embedding_BDgg: Tensor) -> tuple[Tensor, Tensor]:
        """Image embedding -> upscaled embedding (B, d, h, w) and the filter (B, d) that reads the mask from it."""
        batch, _, high, wide = embedding_BDgg.shape
        tokens_TD = torch.cat([self.iou_token, self.mask_tokens, self.task_token])
        tokens_BTD, positions_BND = self.transformer(
            embedding_BDgg, self.position_1Dgg.expand(batch, -1, -1, -1), tokens_TD.expand(batch, -1, -1)
        )
        upscaled_Bdhw = self.upscaling(positions_BND.transpose(1, 2).unflatten(2, (high, wide)))
        return upscaled_Bdhw, self.hyper(tokens_BTD[:, 1])  # token 0 is the IoU's, 1 the single mask's


def small_sam(*, image_size: int, embed_dim: int, depth: int, num_heads: int) -> "Sam":
    """A SAM with an image encoder of other sizes than the published ones and random weights; its last block is global.

    Args:
        image_size: side of the square that the encoder sees, a multiple of its patch of 16 pixels.
    """
    with needs("sam"):
        from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    grid = image_size // 16
    encoder = ImageEncoderViT(
        img_size=image_size,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=14,
        global_attn_indexes=(depth - 1,),
    )
    prompts = PromptEncoder(
        embed_dim=256, image_embedding_size=(grid, grid), input_image_size=(image_size, image_size), mask_in_chans=16
    )
    decoder = MaskDecoder(
        transformer_dim=256, transformer=TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
    )
    return Sam(encoder, prompts, decoder).eval()


def require_side(image_size: int, patch: int) -> None:
    """Raise ValueError for squares that SAM's patches do not divide."""
    if image_size % patch or image_size < patch:
        raise ValueError(f"model.image_size is {image_size}; wanted a multiple of {patch}, SAM's patch size")


def set_image_size(sam: "Sam", image_size: int) -> None:
    """Let a SAM see squares of another side: its position table is resized; relative positions follow by themselves.

    Raises:
        ValueError: no multiple of the patch size.
    """
    encoder = sam.image_encoder
    patch = encoder.patch_embed.proj.kernel_size[0]
    require_side(image_size, patch)
    old, grid = encoder.pos_embed.shape[1], image_size // patch
    table_1ND = resize_positions(encoder.pos_embed.detach().flatten(1, 2), (old, old), (grid, grid))
    encoder.pos_embed = nn.Parameter(table_1ND.unflatten(1, (grid, grid)))
    encoder.img_size = image_size
    sam.prompt_encoder.image_embedding_size = (grid, grid)
    sam.prompt_encoder.input_image_size = (image_size, image_size)


def build_sam_decoder(
    num_classes: int,
    *,
    variant: Variant = "vit_b",
    weights: str | None = None,
    image_size: int = 1024,
    encoder: Mapping[str, int] | None = None,
) -> SamDecoder:
    """SAM with a trainable mask decoder.

    Args:
        num_classes: K; must be 1.
        weights: path of the published checkpoint of this variant, loaded strictly; null = random.
        image_size: S, a multiple of 16; the published weights were trained at 1024, a smaller one is faster.
        encoder: embed_dim, depth and num_heads of an image encoder of other sizes than the variant's, for tests.

    Raises:
        ValueError: more than one class, a size that does not divide into patches, or weights that do not fit.
    """
    if encoder is None:
        sam = load_sam(weights, variant)
    else:
        if {*encoder} != ENCODER:
            raise ValueError(
                f"model.encoder has {', '.join(encoder) or 'nothing'}; wanted {', '.join(sorted(ENCODER))}"
            )
        require_counts(**{f"encoder.{name}": value for name, value in encoder.items()})
        if encoder["embed_dim"] % encoder["num_heads"]:
            raise ValueError(f"model.encoder.embed_dim is {encoder['embed_dim']}; wanted a multiple of its num_heads")
        require_side(image_size, 16)
        sam = small_sam(image_size=image_size, **encoder)
        if weights is not None:
            load_into(sam, weights, variant)
    set_image_size(sam, image_size)
    return SamDecoder(sam, num_classes)
