"""CLIP-aided refinement: what a text says about every patch of an image.

Shapes: B images, K classes, P prompts, T templates, E embedding channels, D token channels, N tokens with the class
token first, h x w patch grid, S side of CLIP's square input, n score maps, H x W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.extras import needs
from wsss.tensors import resize

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # what CLIP was trained with; ImageNet's are others
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
FILES = ("config.json", "model.safetensors", "vocab.json", "merges.txt")

TEMPLATES = ("a photo of {}.", "a blurry photo of {}.", "{} in the distance.")
SMOKE_PROMPTS = ("smoke", "a plume of smoke", "industrial smoke emission", "dark smoke from a chimney")
SMOKE_NEGATIVES = (
    "the sky", "clouds", "steam", "a chimney", "a factory building", "a storage tank", "a crane", "the ground",
    "trees", "water",
)  # fmt: skip
SCENE_NEGATIVES = (
    "the sky", "clouds", "the ground", "grass", "trees", "water", "a road", "a building", "a wall", "the floor",
)  # fmt: skip


@dataclass(frozen=True)
class Clip:
    """A CLIP with its tokenizer, in eval mode."""

    model: Any  # transformers.CLIPModel
    tokenizer: Any

    @property
    def device(self) -> torch.device:
        return self.model.logit_scale.device

    @property
    def patch_size(self) -> int:
        return int(self.model.config.vision_config.patch_size)

    def side(self, size: int | None) -> int:
        """S; None = what this CLIP was trained at. Raises ValueError if it is no multiple of the patch size."""
        size = int(self.model.config.vision_config.image_size) if size is None else size
        if size < self.patch_size or size % self.patch_size:
            raise ValueError(f"size is {size}; wanted a multiple of {self.patch_size}, this CLIP's patch size")
        return size


@dataclass(frozen=True)
class Prompts:
    """Encoded prompts: unit embeddings (P, E), and which class each speaks for (P, K), all zero for a negative one."""

    embedding_PE: Tensor
    class_of_PK: Tensor


def check_folder(folder: str | Path) -> None:
    """Raise ValueError unless the folder has the files that CLIP needs."""
    gone = [name for name in FILES if not (Path(folder) / name).is_file()]
    if gone:
        raise ValueError(
            f"{folder}: {', '.join(gone)} missing; put {', '.join(FILES)} of a CLIP in Hugging Face format there (such "
            "as openai/clip-vit-base-patch16, copied from a machine with network). A folder with pytorch_model.bin "
            "alone is converted by transformers: CLIPModel.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )


def load_clip(folder: str | Path, device: str | torch.device = "cpu") -> Clip:
    """A CLIP from a local folder; the network is never asked.

    Raises:
        ValueError: a file is missing or unreadable, or the weights do not fit the config.
    """
    with needs("clip"):
        from transformers import CLIPModel, CLIPTokenizer
        from transformers.utils import logging

    check_folder(folder)
    logging.disable_progress_bar()  # a bar per process for a second's work
    try:
        loaded: Any = CLIPModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises many types for files that are none of its own
        raise ValueError(f"{folder}: no CLIP that transformers can read ({error}); fetch its files again") from error
    model, found = loaded
    wrong = {name: sorted(map(str, found.get(name) or ())) for name in ("missing_keys", "mismatched_keys")}
    if any(wrong.values()):
        raise ValueError(
            f"{folder}: model.safetensors is of another network than config.json says: "
            + ", ".join(f"{len(names)} {name.replace('_', ' ')} {names[:3]}" for name, names in wrong.items())
        )
    return Clip(model.to(device).eval(), tokenizer)


@torch.no_grad()
def encode_prompts(clip: Clip, positive: Sequence[Sequence[str]], negative: Sequence[str]) -> Prompts:
    """Text -> unit embeddings. A prompt's is the mean of its unit embeddings in each of TEMPLATES, made unit again.

    Args:
        positive: the prompts of each class.
        negative: prompts of what no class is; without any prompt to stand against, a map would be 1 everywhere.

    Raises:
        ValueError: a class without a prompt, fewer than two prompts, or a prompt with too many tokens.
    """
    prompts = [*(prompt for of_class in positive for prompt in of_class), *negative]
    if not all(positive) or len(prompts) < 2:
        raise ValueError(f"prompts {list(map(list, positive))} against {list(negative)}: wanted one per class, and two")
    texts = [template.format(prompt) for prompt in prompts for template in TEMPLATES]
    tokens = clip.tokenizer(texts, padding=True, return_tensors="pt").to(clip.device)
    length, longest = tokens["input_ids"].shape[1], clip.model.config.text_config.max_position_embeddings
    if length > longest:
        raise ValueError(f"the longest prompt has {length} tokens, CLIP reads {longest}; shorten it")
    pooled = clip.model.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).pooler_output
    embedding_PTE = F.normalize(clip.model.text_projection(pooled), dim=-1).unflatten(0, (-1, len(TEMPLATES)))
    class_of_PK = torch.zeros(len(prompts), len(positive), device=clip.device)
    owners = [number for number, of_class in enumerate(positive) for _ in of_class]
    class_of_PK[range(len(owners)), owners] = 1.0
    return Prompts(F.normalize(embedding_PTE.mean(1), dim=-1), class_of_PK)


def clip_maps(
    clip: Clip,
    images: Sequence[np.ndarray],
    positive: Sequence[Sequence[str]],
    negative: Sequence[str],
    *,
    size: int | None = None,
) -> Tensor:
    """Where each class's prompts describe the images better than all others do; see `maps_of_prompts`."""
    return maps_of_prompts(clip, images, encode_prompts(clip, positive, negative), size=size)


@torch.no_grad()
def maps_of_prompts(clip: Clip, images: Sequence[np.ndarray], prompts: Prompts, *, size: int | None = None) -> Tensor:
    """Probability mass of each class's prompts at every patch.

        map_k = sum of softmax_p(logit_scale * <patch, text_p>) over the prompts p of class k

    The softmax runs over the prompts of all classes and the negative ones, so a map is a probability and not the
    min-max of one similarity, which shows a peak on every image. CLIP's scale (100) makes it nearly a vote.

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
    return (logits_BhwP.float().softmax(-1) @ prompts.class_of_PK).permute(0, 3, 1, 2)


def fit(clip: Clip, images: Sequence[np.ndarray], size: int | None) -> Tensor:
    """Images squashed to S x S (bicubic with antialias, as CLIP's own), normalised as CLIP wants: (B, 3, S, S)."""
    size = clip.side(size)
    squares = []
    for image_HW3 in images:
        image_13HW = torch.from_numpy(image_HW3.copy()).to(clip.device).permute(2, 0, 1)[None].float() / 255
        squares.append(F.interpolate(image_13HW, (size, size), mode="bicubic", align_corners=False, antialias=True))
    mean, std = (torch.tensor(values, device=clip.device).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (torch.cat(squares).clamp(0, 1) - mean) / std


@torch.no_grad()
def patch_embeddings(clip: Clip, image_B3SS: Tensor) -> Tensor:
    """Unit embeddings (B, h, w, E) of the patches in the space of the texts.

    In the last block each token attends to itself alone:

        x <- x + W_o W_v LN_1(x),   x <- x + MLP(LN_2(x)),   embedding = W_proj LN_post(x)

    Only the class token of the last block was trained to meet a text. A patch's own output there is a mixture of
    other patches that its query happens to find; its value is what it hands to the class token, so that path keeps
    its place and stays in the space that the projection reads.

    Source: MaskCLIP (Zhou, Loy & Dai 2022, section 3.2), in its form for ViTs with residual and MLP.
    """
    vision = clip.model.vision_model
    out = vision(pixel_values=image_B3SS, output_hidden_states=True, interpolate_pos_encoding=True)
    block, x_BND = vision.encoder.layers[-1], out.hidden_states[-2]  # what the last block reads
    x_BND = x_BND + block.self_attn.out_proj(block.self_attn.v_proj(block.layer_norm1(x_BND)))
    x_BND = x_BND + block.mlp(block.layer_norm2(x_BND))
    patches_BNE = clip.model.visual_projection(vision.post_layernorm(x_BND[:, 1:]))
    side = image_B3SS.shape[-1] // clip.patch_size
    return F.normalize(patches_BNE, dim=-1).unflatten(1, (side, side))


def clip_aid(
    image_HW3: np.ndarray,
    scores_nHW: np.ndarray,
    clip_nhw: np.ndarray,
    *,
    mode: Literal["product", "mean", "replace"] = "product",
    weight: float = 0.5,
) -> np.ndarray:
    """Join scores c with the CLIP maps q of the same classes, w = weight.

        product: c^(1-w) q^w,   mean: (1-w) c + w q,   replace: q

    Args:
        clip_nhw: in [0, 1], at any grid; resized bilinearly.

    Returns:
        (n, H, W) float32 in [0, 1].

    Raises:
        ValueError: another number of maps than of scores, or weight outside [0, 1].
    """
    if len(clip_nhw) != len(scores_nHW):
        raise ValueError(f"{len(clip_nhw)} CLIP maps for {len(scores_nHW)} classes; choose those of the same classes")
    if not 0 <= weight <= 1:
        raise ValueError(f"weight is {weight}; wanted a number in [0, 1]")
    if len(scores_nHW) == 0:
        return scores_nHW
    maps_nHW = resize(torch.from_numpy(clip_nhw.astype(np.float32))[None], scores_nHW.shape[1:])[0].numpy()
    maps_nHW = maps_nHW.clip(0, 1)
    if mode == "replace":
        return maps_nHW
    if mode == "mean":
        return ((1 - weight) * scores_nHW + weight * maps_nHW).astype(np.float32)
    return (scores_nHW ** (1 - weight) * maps_nHW**weight).astype(np.float32)
