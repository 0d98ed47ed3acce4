"""Where SAM 3 finds a concept that is named in words; `clip_aid` (aid.py) combines these maps with scores, like CLIP's.

Shapes: B images, K classes, P prompts, N tokens of a prompt, h x w grid of the maps, S side of SAM 3's square input.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss.models.pretrained import CLIP_TOKENS, WEIGHTS, check_files, import_transformers, load_folder, load_tokenizer
from wsss.refine.clip import squash

FILES = (*WEIGHTS, *CLIP_TOKENS)
KINDS = {"sam3": "Sam3Model", "sam3_video": "Sam3Model"}  # the published SAM 3 is that of videos
WHAT, EXAMPLE = "a SAM 3", "facebook/sam3, whose licence you must accept first"
TOKENS = 32  # of a prompt that SAM 3 reads


@dataclass(frozen=True)
class Concept:
    """A SAM 3 with its tokenizer, in eval mode."""

    model: Any  # transformers.Sam3Model
    tokenizer: Any

    @property
    def side(self) -> int:
        """S."""
        size = self.model.config.image_size
        return int(size if isinstance(size, int) else size[0])


@dataclass(frozen=True)
class ConceptPrompts:
    """Encoded prompts of SAM 3, P of them.

    Attributes:
        features_PND: of their tokens, D channels.
        seen_PN: which tokens are no padding.
        owners: the class 0..K-1 of each.
        num_classes: K.
    """

    features_PND: Tensor
    seen_PN: Tensor
    owners: list[int]
    num_classes: int


def check_concept(folder: str | Path) -> None:
    """Raise ValueError unless the folder has the files of a SAM 3."""
    check_files(folder, FILES, WHAT, EXAMPLE)


def load_concept(folder: str | Path, device: str | torch.device = "cpu") -> Concept:
    """A SAM 3 from a local folder in Hugging Face format.

    Raises:
        MissingPackage: transformers is not installed.
        ValueError: a file is missing, unreadable or of another network, or this version of transformers has no SAM 3.
    """
    import_transformers()
    check_concept(folder)
    model = load_folder(folder, KINDS, WHAT).to(device)
    return Concept(model, load_tokenizer(folder, "CLIPTokenizer", WHAT))


@torch.no_grad()
def encode_concepts(concept: Concept, prompts: Sequence[Sequence[str]]) -> ConceptPrompts:
    """Encode texts as prompts for SAM 3.

    Args:
        prompts: of each class; an image shows the class where it shows any of these.

    Raises:
        ValueError: a class without a prompt, or a prompt with too many tokens.
    """
    if not prompts or not all(prompts):
        raise ValueError(f"prompts {list(map(list, prompts))}: wanted one or more per class")
    texts = [text for of_class in prompts for text in of_class]
    tokens = concept.tokenizer(texts, padding="max_length", max_length=TOKENS, return_tensors="pt")
    tokens = tokens.to(concept.model.device)
    ids_PN, seen_PN = tokens["input_ids"], tokens["attention_mask"]
    if ids_PN.shape[1] > TOKENS:
        raise ValueError(
            f"the longest prompt has {ids_PN.shape[1]} tokens, but SAM 3 reads at most {TOKENS}; shorten it"
        )
    features_PND = concept.model.get_text_features(input_ids=ids_PN, attention_mask=seen_PN).pooler_output
    owners = [number for number, of_class in enumerate(prompts) for _ in of_class]
    return ConceptPrompts(features_PND, seen_PN, owners, len(prompts))


@torch.no_grad()
def concept_maps(
    concept: Concept, images: Sequence[np.ndarray], prompts: ConceptPrompts, *, map_size: int | None = None
) -> Tensor:
    """Maps of where the prompts of each class are found, multiplied by the probability that the image shows them.

        map_k = max over the prompts p of class k of sigmoid(presence_p) * sigmoid(semantic_p)

    The presence is one number per image and prompt, so a concept that an image lacks is low everywhere.

    Args:
        images: (H, W, 3) uint8 RGB, of any sizes.
        map_size: h = w, averaged over each cell; None = SAM 3's own grid (288).

    Returns:
        (B, K, h, w) float32 in [0, 1].

    Raises:
        ValueError: map_size is above SAM 3's own grid, or below 1.
    """
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    square_B3SS = squash(images, concept.side, "bilinear", concept.model.device) * 2 - 1  # in [-1, 1], as SAM 3 wants
    seen = concept.model.get_vision_features(pixel_values=square_B3SS)
    found: list[list[Tensor]] = [[] for _ in range(prompts.num_classes)]
    for text_ND, seen_N, owner in zip(prompts.features_PND, prompts.seen_PN, prompts.owners, strict=True):
        text = BaseModelOutputWithPooling(pooler_output=text_ND.expand(len(images), -1, -1))
        mask_BN = seen_N.expand(len(images), -1)
        out = concept.model(vision_embeds=seen, text_embeds=text, attention_mask=mask_BN)
        map_B1hw = out.semantic_seg.float().sigmoid()
        side = map_B1hw.shape[-1]
        if map_size is not None and not 1 <= map_size <= side:
            raise ValueError(f"map_size is {map_size}; wanted 1 to {side}, the side of this SAM 3's own maps")
        map_B1hw = map_B1hw if map_size is None else F.adaptive_avg_pool2d(map_B1hw, map_size)
        presence_B = out.presence_logits.float().sigmoid().reshape(len(images))
        found[owner].append(presence_B[:, None, None] * map_B1hw[:, 0])
    return torch.stack([torch.stack(of_class).amax(0) for of_class in found], 1)
