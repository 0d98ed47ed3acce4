"""CLIP and SigLIP from a folder, and their embeddings of texts.

Shapes: B images, K classes, P prompts, T templates, E embedding channels, D token channels, h x w patch grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.models.pretrained import (
    CLIP_TOKENS,
    WEIGHTS,
    check_files,
    import_transformers,
    kind_of,
    load_folder,
    load_tokenizer,
)
from wsss.tensors import at_least_float32, full_precision

KINDS = {"clip": "CLIPModel", "siglip": "SiglipModel"}  # SigLIP 2 of a fixed resolution calls itself siglip, too
TOKENS = {"clip": CLIP_TOKENS, "siglip": ("tokenizer.json",)}
WHAT = "a CLIP, or a SigLIP or SigLIP 2 of a fixed resolution"
EXAMPLE = "openai/clip-vit-base-patch16 or google/siglip2-base-patch16-224"

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
    """A CLIP or SigLIP with its tokenizer, in eval mode."""

    model: Any  # transformers.CLIPModel or SiglipModel
    tokenizer: Any

    @property
    def is_siglip(self) -> bool:
        return bool(self.model.config.model_type == "siglip")

    @property
    def device(self) -> torch.device:
        return self.model.logit_scale.device

    @property
    def patch_size(self) -> int:
        return int(self.model.config.vision_config.patch_size)

    def side(self, size: int | None) -> int:
        """S; None = the size that this CLIP was trained at. Raises ValueError unless it is a multiple of the patch
        size."""
        size = int(self.model.config.vision_config.image_size) if size is None else size
        if size < self.patch_size or size % self.patch_size:
            raise ValueError(f"size is {size}; wanted a multiple of {self.patch_size}, this CLIP's patch size")
        return size


@dataclass(frozen=True)
class Prompts:
    """Encoded prompts: unit embeddings (P, E), and the class of each, one-hot (P, K); all zero for a negative
    prompt."""

    embedding_PE: Tensor
    class_of_PK: Tensor


def check_folder(folder: str | Path) -> tuple[str, ...]:
    """The files that a CLIP or SigLIP is read from; raises ValueError unless the folder has them."""
    if not (Path(folder) / "config.json").is_file():  # which says whose tokenizer is wanted
        check_files(folder, (*WEIGHTS, *CLIP_TOKENS), WHAT, EXAMPLE)
    files = (*WEIGHTS, *TOKENS[kind_of(folder, KINDS, WHAT)])
    check_files(folder, files, WHAT, EXAMPLE)
    return files


def load_clip(folder: str | Path, device: str | torch.device = "cpu") -> Clip:
    """A CLIP or SigLIP from a local folder; nothing is downloaded.

    Raises:
        MissingPackage: transformers is not installed.
        ValueError: a file is missing or unreadable, or the weights do not fit the config.
    """
    import_transformers()
    check_folder(folder)
    model = load_folder(folder, KINDS, WHAT)
    tokenizer = "AutoTokenizer" if model.config.model_type == "siglip" else "CLIPTokenizer"
    return Clip(model.to(device), load_tokenizer(folder, tokenizer, WHAT))


def check_prompts(positive: Sequence[Sequence[str]], negative: Sequence[str]) -> list[str]:
    """All prompts, in order.

    Raises:
        ValueError: a class without a prompt, fewer than two prompts, an empty prompt, or one that occurs twice.
    """
    prompts = [*(prompt for of_class in positive for prompt in of_class), *negative]
    said = f"prompts {list(map(list, positive))} against {list(negative)}"
    if not all(positive) or len(prompts) < 2:
        raise ValueError(f"{said}: wanted at least one per class, and two or more in all")
    words = [" ".join(prompt.lower().split()) for prompt in prompts]
    if not all(words):
        raise ValueError(f"{said}: one is empty; wanted words")
    if twice := sorted({word for word in words if words.count(word) > 1}):
        raise ValueError(f"{said}: '{twice[0]}' is listed twice and would compete with itself; list it once")
    return prompts


@torch.no_grad()
def encode_prompts(clip: Clip, positive: Sequence[Sequence[str]], negative: Sequence[str]) -> Prompts:
    """Text -> unit embeddings. That of a prompt is the normalised mean of its unit embeddings in all TEMPLATES.

    Args:
        positive: the prompts of each class.
        negative: prompts for other things; without any competing prompt, a map would be 1 everywhere.

    Raises:
        ValueError: see check_prompts; or a prompt with too many tokens.
    """
    prompts = check_prompts(positive, negative)
    texts = [template.format(prompt) for prompt in prompts for template in TEMPLATES]
    longest = clip.model.config.text_config.max_position_embeddings
    padding = {"padding": "max_length", "max_length": longest} if clip.is_siglip else {"padding": True}
    tokens = clip.tokenizer(texts, return_tensors="pt", **padding).to(clip.device)
    length = tokens["input_ids"].shape[1]
    if length > longest:
        raise ValueError(f"the longest prompt has {length} tokens, but CLIP reads at most {longest}; shorten it")
    if clip.is_siglip:  # trained on padded texts, without a mask
        embedding_PE = clip.model.text_model(input_ids=tokens["input_ids"]).pooler_output
    else:
        seen = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        embedding_PE = clip.model.text_projection(clip.model.text_model(**seen).pooler_output)
    embedding_PTE = F.normalize(embedding_PE, dim=-1).unflatten(0, (-1, len(TEMPLATES)))
    class_of_PK = torch.zeros(len(prompts), len(positive), device=clip.device)
    owners = [number for number, of_class in enumerate(positive) for _ in of_class]
    class_of_PK[range(len(owners)), owners] = 1.0
    return Prompts(F.normalize(embedding_PTE.mean(1), dim=-1), class_of_PK)


class TextHead(nn.Module):
    """A classifier of CLIP's features by fixed texts: the log odds of each class's text against all other texts.

        z_p = scale <W x, t_p> / |W x|,   logit_k = z_k - log sum_{p != k} exp z_p

    so that sigmoid(logit_k) is the softmax over the texts, those of the classes first. x are features after CLIP's last
    norm, W its projection; |W x|^2 = x^T G x with G = W^T W, so that the stored tensors do not depend on the size E of
    the embedding.

    Args:
        feature_dim: D.
        texts: P, K classes before others.
        num_classes: K.
    """

    text_PD: Tensor
    gram_DD: Tensor
    equal_on_ranks = ("text_PD", "gram_DD")

    def __init__(self, feature_dim: int, texts: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.register_buffer("text_PD", torch.zeros(texts, feature_dim))
        self.register_buffer("gram_DD", torch.eye(feature_dim))

    @property
    def weight(self) -> Tensor:
        return self.text_PD

    @torch.no_grad()
    def read(self, clip: Clip, classes: Sequence[str], others: Sequence[str]) -> None:
        """Encode the texts with a CLIP, and store them with its projection.

        Raises:
            ValueError: a SigLIP, a CLIP of another width, or see encode_prompts.
        """
        if clip.is_siglip:
            raise ValueError("SigLIP has no class token to compare with texts; give a CLIP")
        projection_ED = clip.model.visual_projection.weight
        if projection_ED.shape[1] != self.text_PD.shape[1]:
            raise ValueError(
                f"this CLIP projects features of {projection_ED.shape[1]} channels, the network has "
                f"{self.text_PD.shape[1]}; give the CLIP that the network's image encoder comes from"
            )
        embedding_PE = encode_prompts(clip, [[name] for name in classes], others).embedding_PE
        self.text_PD.copy_(clip.model.logit_scale.exp() * embedding_PE @ projection_ED)
        self.gram_DD.copy_(projection_ED.T @ projection_ED)

    def forward(self, features_BDhw: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, K, h, w)."""
        x_BhwD = at_least_float32(features_BDhw).permute(0, 2, 3, 1)
        with full_precision(x_BhwD):
            length_Bhw1 = ((x_BhwD @ self.gram_DD) * x_BhwD).sum(-1, keepdim=True).clamp(min=1e-12).sqrt()
            z_BhwP = x_BhwD @ self.text_PD.T / length_Bhw1
        own_KP = torch.eye(len(self.text_PD), dtype=torch.bool, device=z_BhwP.device)[: self.num_classes]
        others_BhwK = z_BhwP[..., None, :].masked_fill(own_KP, -torch.inf).logsumexp(-1)
        return (z_BhwP[..., : self.num_classes] - others_BhwK).permute(0, 3, 1, 2)
