"""Any plain timm Vision Transformer as an image classifier with patch features.

Shapes: B images, K classes, D channels, N tokens, h x w patch grid, H x W pixels.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import timm
import torch
from timm.layers import AttentionRope, PatchEmbed
from timm.models.eva import Eva, EvaAttention
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wsss.models.base import AttentionInput, Network, Outputs, layer_at
from wsss.models.dry_run import try_network
from wsss.models.embedding import Embedded, embed_learned, embed_rotary
from wsss.models.weights import create_backbone, name_at_timm, normalisation


class ViT(Network):
    """A timm VisionTransformer with a linear classifier on its class token.

    The patch grid follows the image: sides are cut to multiples of the patch size, and the position table is
    resized to the grid (see embedding.resize_positions). Without a class token the mean patch takes its place.

    Attributes:
        checkpointing: compute each block again in the backward pass instead of keeping what it computed: a third more
            time for a fraction of the memory.
    """

    def __init__(
        self,
        backbone: VisionTransformer | Eva,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        checkpointing: bool = False,
    ) -> None:
        patch = int(backbone.patch_embed.patch_size[0])
        super().__init__(feature_dim=backbone.embed_dim, stride=patch, num_classes=num_classes, mean=mean, std=std)
        self.backbone = backbone
        self.checkpointing = checkpointing

    @property
    def blocks(self) -> Any:  # timm types its parts as Module | None
        """First to last."""
        return self.backbone.blocks

    def forward(self, image: Tensor) -> Outputs:
        embedded = self.embed(self.normalise(image))
        return self.read(self.through(embedded), embedded.grid)

    def through(self, embedded: Embedded, first: int = 0, last: int | None = None) -> Tensor:
        """Tokens after the blocks `first` to `last` (exclusive; None = all others)."""
        tokens_BND, _, rotary = embedded
        for number in range(first, len(self.blocks) if last is None else last):
            block = partial(self.blocks[number], rope=rotary[number]) if rotary else self.blocks[number]
            if self.checkpointing and torch.is_grad_enabled():
                tokens_BND = checkpoint(block, tokens_BND, use_reentrant=False)
            else:
                tokens_BND = block(tokens_BND)
        return tokens_BND

    def with_attention(self, image: Tensor) -> tuple[Outputs, Tensor]:
        """The forward pass, and `attention_of` it.

        Raises:
            ValueError: see reading_attention.
        """
        with self.reading_attention() as seen:
            out = self(image)
        return out, self.attention_of(seen[-1], image)

    @contextmanager
    def reading_attention(self, blocks: int = 1) -> Iterator[list[AttentionInput]]:
        """See Network.reading_attention; of the last `blocks` blocks, one after another."""
        self.refuse_without_attention()
        seen: list[AttentionInput] = []
        handles = [
            block.attn.register_forward_pre_hook(
                lambda module, inputs, named: seen.append((inputs[0], named.get("rope"))), with_kwargs=True
            )
            for block in self.blocks[len(self.blocks) - blocks :]
        ]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def attention_of(self, read: AttentionInput, image: Tensor) -> Tensor:
        """The last block's attention from the class token to the patches, averaged over heads, (B, h, w) in [0, 1].

        It is computed beside the block, whose own attention stays fused.
        """
        patches_BN = self.attend(read, -1, slice(0, 1))[:, 0, self.backbone.num_prefix_tokens :]
        return patches_BN.unflatten(1, [side // self.stride for side in image.shape[-2:]])

    def attend(self, read: AttentionInput, block: int, queries: slice) -> Tensor:
        """What these tokens attend to in a block, averaged over heads, (B, queries, N) in [0, 1], rows sum to 1.

        Args:
            read: what the block's attention reads, from reading_attention.
        """
        return attention_weights(self.blocks[block].attn, *read)[:, :, queries].float().mean(dim=1)

    def refuse_without_attention(self) -> None:
        """Raise ValueError where there is no attention to read."""
        if self.backbone.cls_token is None:
            raise ValueError(
                "this ViT has no class token, whose attention is needed; choose one that has a class token"
            )
        attention = type(self.blocks[-1].attn)
        if attention not in (Attention, AttentionRope, EvaAttention):
            raise ValueError(f"the attention weights of {attention.__name__} cannot be read; choose a plain ViT")

    def read(self, tokens_BND: Tensor, grid: tuple[int, int]) -> Outputs:
        """Tokens after the last block -> Outputs."""
        tokens_BND = self.backbone.norm(tokens_BND)
        patches_BDhw = self.grid_of(tokens_BND, grid)
        pooled_BD = tokens_BND[:, 0] if self.backbone.cls_token is not None else patches_BDhw.mean(dim=(2, 3))
        return Outputs(self.head(pooled_BD[..., None, None]).flatten(1), patches_BDhw, self.head(patches_BDhw))

    def embed(self, image: Tensor) -> Embedded:
        """A normalised image before the first block."""
        height, width = (side // self.stride for side in image.shape[-2:])
        image = image[..., : height * self.stride, : width * self.stride]
        embed = embed_rotary if isinstance(self.backbone, Eva) else embed_learned
        return embed(self.backbone, image, (height, width))

    def grid_of(self, tokens_BND: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens without the prefix as a (B, D, h, w) map."""
        return tokens_BND[:, self.backbone.num_prefix_tokens :].transpose(1, 2).unflatten(2, grid)

    def grad_cam_layer(self, index: int) -> nn.Module:
        """The first norm of a block: what its attention reads. The smoke paper has the last block's."""
        return layer_at(self.blocks, index).norm1

    def as_map(self, activation: Tensor, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        return self.grid_of(activation, (height // self.stride, width // self.stride))


def attention_weights(attention: Any, tokens_BND: Tensor, rope: Tensor | None) -> Tensor:
    """What timm's attention weighs its values with, (B, heads, N, N): its own code on its way that is not fused."""
    seen: list[Tensor] = []
    handle = attention.attn_drop.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    fused, attention.fused_attn = attention.fused_attn, False
    try:
        attention(tokens_BND) if rope is None else attention(tokens_BND, rope=rope)
    finally:
        attention.fused_attn = fused
        handle.remove()
    return seen[0]


def build_vit(
    num_classes: int,
    *,
    timm_name: str,
    weights: str | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    timm_options: Mapping[str, Any] | None = None,
    checkpointing: bool = False,
) -> ViT:
    """A timm ViT by name, with learned or rotary positions.

    Args:
        num_classes: K.
        timm_name: such as vit_base_patch16_224, vit_small_patch14_dinov2, vit_base_patch16_dinov3 or
            eva02_base_patch14_224; hf-hub:OWNER/NAME for one of the Hugging Face hub.
        weights: null = random, 'timm' = timm's pretrained weights (downloads), else a path, loaded strictly.
        mean, std: RGB normalisation; null = what timm states for this name.
        timm_options: further arguments of timm's constructor (img_size, patch_size, depth, drop_path_rate, ...).
        checkpointing: see ViT.

    Raises:
        ValueError: timm has no such model, it is no ViT of one grid or does not run as one, or the weights do not fit.
    """
    options = {"global_pool": "", **(timm_options or {})}
    if timm.models.is_model_in_modules(name_at_timm(timm_name), ["eva"]):
        options = {"dynamic_img_size": True, **options}  # without it timm's positions are those of one size
    plain = "a ViT of one grid, such as vit_base_patch16_224 or vit_base_patch16_dinov3"
    backbone = create_backbone(timm_name, weights, options, head=("head", "fc_norm"), wanted=plain)
    has_positions = isinstance(backbone, Eva) or getattr(backbone, "pos_embed", None) is not None
    if not isinstance(backbone, VisionTransformer | Eva) or not has_positions:
        raise ValueError(
            f"model.timm_name: '{timm_name}' is a {type(backbone).__name__}, not {plain}; a network whose map gets "
            "coarser from stage to stage (Swin, PVT, ConvNeXt) needs model.name=cnn with output_stride: null"
        )
    if type(backbone.patch_embed) is not PatchEmbed:
        raise ValueError(
            f"model.timm_name: '{timm_name}' makes its patches with {type(backbone.patch_embed).__name__}; choose "
            f"{plain}"
        )
    vit = ViT(backbone, num_classes, *normalisation(backbone, mean, std), checkpointing=checkpointing)
    try_network(vit, timm_name, stride=vit.stride)
    return vit
