"""How well a text matches every patch of an image, by CLIP or SigLIP.

Shapes: B images, K classes, P prompts, E embedding channels, D token channels, N tokens (CLIP's with the class token
first), h x w patch grid, S side of CLIP's square input.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.models.clip import Clip, Prompts

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # what CLIP was trained with; ImageNet's are others
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
SIGLIP_MEAN = SIGLIP_STD = (0.5, 0.5, 0.5)


@torch.no_grad()
def clip_maps(clip: Clip, images: Sequence[np.ndarray], prompts: Prompts, *, size: int | None = None) -> Tensor:
    """Probability mass of each class's prompts at every patch.

        CLIP:    map_k = sum of softmax_p(logit_scale * <patch, text_p>) over the prompts p of class k
        SigLIP:  map_k = max of sigmoid(logit_scale * <patch, text_p> + logit_bias) over these

    The softmax runs over the prompts of all classes and the negative ones, so a map is a probability and not the
    min-max of one similarity, which shows a peak on every image. CLIP's scale (100) makes it nearly a vote. SigLIP was
    trained to decide for each pair of image and text whether they match: its maps do not depend on the other prompts,
    so negative ones have no effect, and they may be small everywhere.

    Args:
        images: (H, W, 3) uint8 RGB, of any sizes.
        size: S; None = what CLIP was trained at. At other sizes its position table is resized.

    Returns:
        (B, K, h, w) float32 in [0, 1].

    Raises:
        ValueError: size is no multiple of the patch size.
    """
    patches_BhwE = patch_embeddings(clip, fit(clip, images, size))
    logits_BhwP = clip.model.logit_scale.exp() * (patches_BhwE @ prompts.embedding_PE.T)
    if clip.is_siglip:
        found_BhwP = (logits_BhwP + clip.model.logit_bias).float().sigmoid()
        of_classes = [
            found_BhwP[..., prompts.class_of_PK[:, k] > 0].amax(-1) for k in range(prompts.class_of_PK.shape[1])
        ]
        return torch.stack(of_classes, 1)
    return (logits_BhwP.float().softmax(-1) @ prompts.class_of_PK).permute(0, 3, 1, 2)


def fit(clip: Clip, images: Sequence[np.ndarray], size: int | None) -> Tensor:
    """Images squashed to S x S (bicubic with antialias, as CLIP does) and normalised for CLIP: (B, 3, S, S)."""
    square_B3SS = squash(images, clip.side(size), "bicubic", clip.device).clamp(0, 1)
    norm = (SIGLIP_MEAN, SIGLIP_STD) if clip.is_siglip else (CLIP_MEAN, CLIP_STD)
    mean, std = (torch.tensor(values, device=clip.device).view(3, 1, 1) for values in norm)
    return (square_B3SS - mean) / std


def squash(images: Sequence[np.ndarray], side: int, mode: str, device: torch.device) -> Tensor:
    """Images (H, W, 3) uint8 RGB of any sizes, squashed to squares with antialias: (B, 3, S, S) about [0, 1]."""
    squares = []
    for image_HW3 in images:
        image_13HW = torch.from_numpy(image_HW3.copy()).to(device).permute(2, 0, 1)[None].float() / 255
        squares.append(F.interpolate(image_13HW, (side, side), mode=mode, align_corners=False, antialias=True))
    return torch.cat(squares)


@torch.no_grad()
def patch_embeddings(clip: Clip, image_B3SS: Tensor) -> Tensor:
    """Unit embeddings (B, h, w, E) of the patches in the space of the texts.

    In the last block each token attends to itself alone:

        x <- x + W_o W_v LN_1(x),   x <- x + MLP(LN_2(x)),   embedding = W_proj LN_post(x)

    Only the class token of the last block was trained to match texts. A patch's normal output there is a mixture of
    other patches; its value vector is what it contributes to the class token. This path keeps the patch's position and
    stays in the space that the projection expects.

    SigLIP has no class token: after its blocks, one query pools all tokens into the vector that is compared with texts.
    Here this pooling gets one token at a time, which gives the token's own value.

    Source: MaskCLIP (Zhou, Loy & Dai 2022, section 3.2), in its form for ViTs with residual and MLP.
    """
    vision, side = clip.model.vision_model, image_B3SS.shape[-1] // clip.patch_size
    if clip.is_siglip:
        tokens_BND = vision(pixel_values=image_B3SS, interpolate_pos_encoding=True).last_hidden_state
        patches_BNE = vision.head(tokens_BND.flatten(0, 1)[:, None]).unflatten(0, tokens_BND.shape[:2])
        return F.normalize(patches_BNE, dim=-1).unflatten(1, (side, side))
    out = vision(pixel_values=image_B3SS, output_hidden_states=True, interpolate_pos_encoding=True)
    block, x_BND = vision.encoder.layers[-1], out.hidden_states[-2]  # what the last block reads
    x_BND = x_BND + block.self_attn.out_proj(block.self_attn.v_proj(block.layer_norm1(x_BND)))
    x_BND = x_BND + block.mlp(block.layer_norm2(x_BND))
    patches_BNE = clip.model.visual_projection(vision.post_layernorm(x_BND[:, 1:]))
    return F.normalize(patches_BNE, dim=-1).unflatten(1, (side, side))
