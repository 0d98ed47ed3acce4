"""One or two frozen ViTs, a classifier of their features, and a small decoder, the only part that is trained besides
it.

Shapes: B images, K foreground classes, C = K + 1, D channels, E decoder channels, L blocks, N = h * w patches.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from wsss.models.base import IMAGENET_MEAN, IMAGENET_STD, AttentionInput, Network, Outputs
from wsss.models.clip import SCENE_NEGATIVES, TextHead, check_prompts, load_clip
from wsss.models.segmentation import foreground_probabilities
from wsss.models.toco import max_pooled
from wsss.models.vit import ViT, build_vit
from wsss.models.weights import speaking_of
from wsss.tensors import resize

OF_SECOND = {  # what build_vit calls its options -> what the config calls those of the second ViT
    "model.timm_name": "model.second",
    "model.weights": "model.second_weights",
    "model.timm_options": "model.second_options",
}


class Encoded(NamedTuple):
    """Features of the frozen ViTs.

    Attributes:
        depths: patches (B, D, h, w) after the blocks that the decoder reads, of each ViT, on the grid of the first.
        cls_BD, patches_BDhw: class token and patches of the first ViT after its norm.
        attention_LBNN: of its last blocks from patch to patch, a mean over heads; rows sum to 1 or less (the rest goes
            to prefix tokens). None if it was not requested.
    """

    depths: list[Tensor]
    cls_BD: Tensor
    patches_BDhw: Tensor
    attention_LBNN: Tensor | None


class FrozenNet(Network):
    """Frozen patches of several depths -> fused -> transformer -> scores of every class, background first.

        fused = W [W_1 x_1, ..., W_L x_L],   seg = W_seg blocks(fused)

    x_l are patches after the blocks `layers` of each encoder. The classifier is either learned, 1x1 without bias on the
    maximum of each channel over the patches (max_pooled), or CLIP's own: `text`, on the class token, never trained. CAM
    kinds: `class_map`, `grad` and `attention` of the first encoder, `seg`.

    Args:
        encoders: see build_vit; the features of the first one are classified, and all use its grid.
        layers: depths as in a list of blocks.
        dim, blocks, heads: of the decoder.
        text: None = the classifier is learnt.

    Source: WeCLIP (Zhang et al., CVPR 2024), frozen CLIP feature decoder; WeCLIP+ (TPAMI 2025) for two encoders; D-148.
    """

    def __init__(
        self,
        encoders: Sequence[ViT],
        num_classes: int,
        *,
        layers: Sequence[int],
        dim: int,
        blocks: int,
        heads: int,
        text: TextHead | None = None,
    ) -> None:
        first = encoders[0]
        shape = {"feature_dim": first.feature_dim, "stride": first.stride, "num_classes": num_classes}
        super().__init__(**shape, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        self.mean, self.std = first.mean, first.std
        for encoder in encoders:
            del encoder.head  # it classifies with ours
            encoder.eval().requires_grad_(False)
        self.encoders = nn.ModuleList(encoders)
        self.layers, self.by_text = tuple(layers), text is not None
        self.head: Any = text or nn.Conv2d(first.feature_dim, num_classes, 1, bias=False)
        ins = [encoder.feature_dim for encoder in encoders for _ in layers]
        self.project = nn.ModuleList(nn.Conv2d(channels, dim, 1) for channels in ins)
        self.fuse = nn.Conv2d(dim * len(ins), dim, 1)
        self.blocks = nn.Sequential(*(Block(dim, heads, qkv_bias=True) for _ in range(blocks)))
        self.seg_head = nn.Conv2d(dim, num_classes + 1, 1)

    @property
    def first(self) -> Any:
        """The ViT whose features are classified and whose grid all use."""
        return self.encoders[0]

    @property
    def decoder(self) -> tuple[nn.Module, ...]:
        """What `decode` trains."""
        return self.project, self.fuse, self.blocks, self.seg_head

    def check_begun(self) -> None:
        if self.by_text and not self.head.text_PD.any():
            raise ValueError(
                "model.texts: no CLIP has encoded them; give model.text_weights, the folder of the CLIP whose image "
                "encoder model.weights is, or model.weights=RUN, a run that was trained with these texts"
            )

    def train(self, mode: bool = True) -> "FrozenNet":
        super().train(mode)
        self.encoders.eval()
        return self

    def encode(self, image: Tensor, attended: int = 0) -> Encoded:
        """(B, 3, H, W) RGB in [0, 1] -> what the frozen ViTs see, with the attention of so many last blocks."""
        tokens_BND, grid, depths, seen = self.run(self.first, image, attended)
        normed_BND, prefix = self.first.backbone.norm(tokens_BND), self.first.backbone.num_prefix_tokens
        patches_BDhw = self.first.grid_of(normed_BND, grid)
        with torch.no_grad():
            attention = [
                self.first.attend(read, number - attended, slice(prefix, None))[..., prefix:]
                for number, read in enumerate(seen)
            ]
        for encoder in list(self.encoders)[1:]:
            depths += [resize(x, grid) for x in self.run(encoder, image)[2]]
        return Encoded(depths, normed_BND[:, 0], patches_BDhw, torch.stack(attention) if attention else None)

    def run(
        self, encoder: Any, image: Tensor, attended: int = 0
    ) -> tuple[Tensor, tuple[int, int], list[Tensor], list[AttentionInput]]:
        """Tokens after the last block, their grid, the patches at each depth, and what the attention of the last
        `attended` blocks reads."""
        embedded = encoder.embed(encoder.normalise(image))
        depths, begin, depth = {}, 0, len(encoder.blocks)
        with encoder.reading_attention(attended) if attended else nullcontext([]) as seen:
            for end in sorted({layer % depth + 1 for layer in self.layers} | {depth}):
                embedded = embedded._replace(tokens_BND=encoder.through(embedded, begin, end))
                depths[end], begin = encoder.grid_of(embedded.tokens_BND, embedded.grid), end
        return embedded.tokens_BND, embedded.grid, [depths[layer % depth + 1] for layer in self.layers], seen

    def decode(self, depths: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Fused patches (B, E, h, w), which the affinity is of, and scores (B, C, h, w)."""
        parts = [layer(x.detach()) for layer, x in zip(self.project, depths, strict=True)]
        fused_BEhw = self.fuse(torch.cat(parts, dim=1))
        tokens_BNE = self.blocks(fused_BEhw.flatten(2).transpose(1, 2))
        return fused_BEhw, self.seg_head(tokens_BNE.transpose(1, 2).unflatten(2, fused_BEhw.shape[-2:]))

    def classify(self, seen: Encoded) -> Tensor:
        """Class scores (B, K)."""
        if self.by_text:
            return self.head(seen.cls_BD[..., None, None]).flatten(1)
        return max_pooled(self.head, seen.patches_BDhw)

    def forward(self, image: Tensor) -> Outputs:
        seen = self.encode(image)
        _, seg_logits_BChw = self.decode(seen.depths)
        maps = {"seg": foreground_probabilities(seg_logits_BChw)}
        class_map = self.head(seen.patches_BDhw)
        return Outputs(self.classify(seen), seen.patches_BDhw, class_map, maps=maps, seg_logits_BChw=seg_logits_BChw)

    def reading_attention(self) -> AbstractContextManager[list[AttentionInput]]:
        return self.first.reading_attention()

    def attention_of(self, read: AttentionInput, image: Tensor) -> Tensor:
        return self.first.attention_of(read, image)

    def grad_cam_layer(self, index: int) -> nn.Module:
        return self.first.grad_cam_layer(index)

    def as_map(self, activation: Tensor, image: Tensor) -> Tensor:
        return self.first.as_map(activation, image)


def build_frozen(
    num_classes: int,
    *,
    timm_name: str,
    weights: str | None = None,
    second: str | None = None,
    second_weights: str | None = None,
    texts: tuple[str, ...] = (),
    other_texts: tuple[str, ...] = SCENE_NEGATIVES,
    text_weights: str | None = None,
    layers: tuple[int, ...] = (),
    decoder_dim: int = 256,
    decoder_blocks: int = 3,
    decoder_heads: int = 8,
    timm_options: Mapping[str, Any] | None = None,
    second_options: Mapping[str, Any] | None = None,
) -> FrozenNet:
    """Frozen ViTs of timm and a decoder of random weights.

    Args:
        num_classes: K.
        timm_name, weights, timm_options: of the first ViT, with a class token; see build_vit. CLIP's image
            encoder is vit_base_patch16_clip_quickgelu_224.openai.
        second, second_weights, second_options: of another one beside it, such as vit_base_patch14_dinov2; null = none.
        texts: names of the classes, in their order. The first ViT is then CLIP's image encoder, and the embedded texts
            are the classifier. () = a classifier is learned.
        other_texts: what else an image may show; used only with `texts`.
        text_weights: folder of that CLIP in Hugging Face format, for encoding the texts and for its projection. null =
            a checkpoint has them.
        layers: depths that the decoder reads of each; () = every block of the shallower one.
        decoder_dim, decoder_blocks, decoder_heads: of the decoder.

    Raises:
        ValueError: see build_vit; a depth that a ViT does not have, heads that do not divide the channels, a number of
            texts other than of classes, or a CLIP to which the first ViT does not belong.
        MissingPackage: texts without transformers.
    """
    encoders = [build_vit(1, timm_name=timm_name, weights=weights, timm_options=timm_options)]
    encoders[0].refuse_without_attention()
    if second is not None:
        with speaking_of(OF_SECOND):
            encoders.append(build_vit(1, timm_name=second, weights=second_weights, timm_options=second_options))
    elif second_weights is not None or second_options:
        raise ValueError(
            "model.second_weights and second_options belong to a second ViT: name it with model.second=NAME, or leave "
            "them out: model.second_weights=null model.second_options=null"
        )
    depth = min(len(encoder.blocks) for encoder in encoders)
    if not all(-depth <= layer < depth for layer in layers) or len({n % depth for n in layers}) < len(layers):
        raise ValueError(
            f"model.layers is {layers}; wanted different blocks between {-depth} and {depth - 1}, where -1 is the last"
        )
    if decoder_dim < 1 or decoder_blocks < 0:
        raise ValueError(f"model: wanted decoder_dim ({decoder_dim}) >= 1 and decoder_blocks ({decoder_blocks}) >= 0")
    if decoder_heads < 1 or decoder_dim % decoder_heads:
        raise ValueError(f"model.decoder_heads is {decoder_heads}; wanted a divisor of decoder_dim, {decoder_dim}")
    return FrozenNet(
        encoders,
        num_classes,
        layers=layers or range(-depth, 0),
        dim=decoder_dim,
        blocks=decoder_blocks,
        heads=decoder_heads,
        text=build_text_head(encoders[0], num_classes, texts, other_texts, text_weights),
    )


def build_text_head(
    first: ViT, num_classes: int, texts: Sequence[str], other_texts: Sequence[str], text_weights: str | None
) -> TextHead | None:
    """The classifier that the texts are, encoded if there is a CLIP for it; None without texts. See build_frozen."""
    if not texts:
        if text_weights is not None:
            raise ValueError(
                "model.text_weights is given without model.texts; name the classes there in their order, or leave "
                "text_weights out: model.text_weights=null"
            )
        return None
    if len(texts) != num_classes:
        raise ValueError(f"model.texts has {len(texts)} entries for {num_classes} classes; wanted one per class")
    with speaking_of({"prompts": "model.texts and other_texts"}):
        check_prompts([[name] for name in texts], other_texts)
    text = TextHead(first.feature_dim, len(texts) + len(other_texts), num_classes)
    if text_weights is not None:
        clip = load_clip(text_weights)
        text.read(clip, texts, other_texts)
        refuse_other_clip(first, clip.model, text_weights)
    return text


def refuse_other_clip(encoder: Any, clip: Any, folder: str) -> None:
    """Raise ValueError unless the last norm of a CLIP's image encoder equals that of the ViT, so that both are the same
    network."""
    if not torch.allclose(encoder.backbone.norm.weight, clip.vision_model.post_layernorm.weight, atol=1e-3):
        raise ValueError(
            f"model.text_weights: {folder} is another CLIP than the one that model.weights comes from, so its text "
            "embeddings do not fit that ViT; give both from one CLIP"
        )
