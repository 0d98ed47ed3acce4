"""A CLIP and a SigLIP of random weights in the publishers' formats, and settings under which random SAMs propose."""

import json
from pathlib import Path
from typing import Any

import torch

LOOSE = {"points_per_side": 2, "pred_iou": -1e9, "stability": 0.0, "min_area_px": 2}  # keeps masks of random weights
NARROW = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def write_clip_tokens(folder: Path) -> dict[str, Any]:
    """The files of a tokenizer of CLIP's kind that knows letters and one merge; returns what a config says of it."""
    from tokenizers.pre_tokenizers import ByteLevel

    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "sm", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\ns m\n")
    last = len(tokens) - 1
    return {"vocab_size": len(tokens), "bos_token_id": last - 1, "eos_token_id": last, "pad_token_id": last}


def write_tiny_clip(folder: Path) -> Path:
    """A random CLIP of two narrow layers."""
    from transformers import CLIPConfig, CLIPModel

    text = write_clip_tokens(folder)
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**NARROW, **text, "max_position_embeddings": 77},
        vision_config={**NARROW, "image_size": 16, "patch_size": 4},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    return folder


def write_tiny_siglip(folder: Path) -> Path:
    """A random SigLIP 2 of a fixed resolution, whose config calls it siglip; its tokenizer knows small letters."""
    from transformers import Siglip2Tokenizer, SiglipConfig, SiglipModel

    torch.manual_seed(0)
    config = SiglipConfig(
        text_config={**NARROW, "vocab_size": 40, "max_position_embeddings": 64, "projection_size": 16},
        vision_config={**NARROW, "image_size": 16, "patch_size": 4},
    )
    model = SiglipModel(config)
    model.logit_bias.data.fill_(-1.5)  # 0 as it is made, which would hide that it is read
    model.save_pretrained(folder)
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", "."]
    tokens = [*special, *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Siglip2Tokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=[])
    tokenizer.save_pretrained(folder)
    return folder
