"""A CLIP of random weights in the publisher's format, and settings under which random SAMs propose something."""

import json
from pathlib import Path

import torch

LOOSE = {"points_per_side": 2, "pred_iou": -1e9, "stability": 0.0, "min_area_px": 2}  # keeps masks of random weights


def write_tiny_clip(folder: Path) -> Path:
    """A random CLIP of two narrow layers in the publisher's format; its tokenizer knows letters and one merge."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPConfig, CLIPModel

    narrow = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "sm", "<|startoftext|>", "<|endoftext|>"]
    ends = {"bos_token_id": len(tokens) - 2, "eos_token_id": len(tokens) - 1, "pad_token_id": len(tokens) - 1}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**narrow, **ends, "vocab_size": len(tokens), "max_position_embeddings": 77},
        vision_config={**narrow, "image_size": 16, "patch_size": 4},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\ns m\n")
    return folder
