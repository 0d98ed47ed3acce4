"""SAMs of random weights in the format of Hugging Face, and one SAM in both formats."""

import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from wsss.models.sam_decoder import small_sam

TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2}
SIDE = 64

RENAMED = (  # of segment-anything -> of transformers, in this order
    (r"^image_encoder", "vision_encoder"),
    (r"^vision_encoder\.blocks", "vision_encoder.layers"),
    (r"neck\.0", "neck.conv1"),
    (r"neck\.1", "neck.layer_norm1"),
    (r"neck\.2", "neck.conv2"),
    (r"neck\.3", "neck.layer_norm2"),
    (r"patch_embed\.proj", "patch_embed.projection"),
    (r"\.norm(?=\d|_)", ".layer_norm"),
    (r"pe_layer\.positional_encoding_gaussian_matrix", "shared_embedding.positional_embedding"),
    (r"point_embeddings", "point_embed"),
    (r"mask_downscaling\.0", "mask_embed.conv1"),
    (r"mask_downscaling\.1", "mask_embed.layer_norm1"),
    (r"mask_downscaling\.3", "mask_embed.conv2"),
    (r"mask_downscaling\.4", "mask_embed.layer_norm2"),
    (r"mask_downscaling\.6", "mask_embed.conv3"),
    (r"output_upscaling\.0", "upscale_conv1"),
    (r"output_upscaling\.1", "upscale_layer_norm"),
    (r"output_upscaling\.3", "upscale_conv2"),
    (r"(mlps\.\d|iou_prediction_head)\.layers\.0", r"\1.proj_in"),
    (r"(mlps\.\d|iou_prediction_head)\.layers\.1", r"\1.layers.0"),
    (r"(mlps\.\d|iou_prediction_head)\.layers\.2", r"\1.proj_out"),
)


def renamed(name: str) -> str:
    """A parameter of segment-anything's SAM as transformers calls it."""
    for pattern, new in RENAMED:
        name = re.sub(pattern, new, name)
    return name


def write_sam(folder: Path, sam: torch.nn.Module) -> Path:
    """A SAM of `small_sam` with the sizes of TINY and SIDE, in the format of transformers."""
    from transformers import SamConfig, SamModel

    encoder = {"hidden_size": TINY["embed_dim"], "num_hidden_layers": TINY["depth"], "image_size": SIDE}
    encoder |= {"num_attention_heads": TINY["num_heads"], "mlp_dim": 4 * TINY["embed_dim"], "patch_size": 16}
    encoder |= {"global_attn_indexes": [TINY["depth"] - 1], "num_pos_feats": 128}
    model = SamModel(SamConfig(vision_config=encoder, prompt_encoder_config={"image_size": SIDE}))
    state = {renamed(name): value for name, value in sam.state_dict().items()}
    state["shared_image_embedding.positional_embedding"] = state["prompt_encoder.shared_embedding.positional_embedding"]
    model.load_state_dict(state)
    model.save_pretrained(folder)
    return folder


def write_sam_in_both(folder: Path, seed: int = 0) -> tuple[Path, Path, torch.nn.Module]:
    """One random SAM as sam.pth, as a folder in the format of transformers, and itself."""
    torch.manual_seed(seed)
    sam = small_sam(image_size=SIDE, **TINY)
    with torch.no_grad():  # as drawn, every point has the same mask
        for value in sam.mask_decoder.parameters():
            if value.dim() > 1:
                value *= 2.5
        for mlp in sam.mask_decoder.output_hypernetworks_mlps:
            mlp.layers[-1].weight *= 4
        sam.image_encoder.pos_embed.normal_()
    torch.save(sam.state_dict(), folder / "sam.pth")
    return folder / "sam.pth", write_sam(folder / "sam", sam), sam


def write_sam2(folder: Path) -> Path:
    """A random SAM 2 that sees squares of 128 px."""
    from transformers import Sam2Config, Sam2Model

    torch.manual_seed(0)
    backbone = {"hidden_size": 8, "num_attention_heads": 1, "image_size": [128, 128], "blocks_per_stage": [1, 1, 2, 1]}
    backbone |= {"embed_dim_per_stage": [8, 16, 32, 64], "num_attention_heads_per_stage": [1, 1, 1, 1]}
    backbone |= {"window_size_per_stage": [4, 4, 4, 4], "global_attention_blocks": [3]}
    backbone |= {"window_positional_embedding_background_size": [7, 7]}
    vision = {"backbone_config": {"model_type": "sam2_hiera_det_model", **backbone}, "fpn_hidden_size": 32}
    vision |= {"backbone_channel_list": [64, 32, 16, 8], "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]]}
    decoder = {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    prompts = {"hidden_size": 32, "image_size": 128}
    Sam2Model(
        Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    ).save_pretrained(folder)
    return folder


def write_sam3(folder: Path) -> Path:
    """A random SAM 3 in the publisher's format, that of a video model with detector and tracker, and its tokenizer."""
    from support.clips import write_clip_tokens
    from transformers import Sam3VideoConfig, Sam3VideoModel

    torch.manual_seed(0)
    side, patch, width = 112, 14, 32
    grid = side // patch
    sizes = [[4 * grid, 4 * grid], [2 * grid, 2 * grid], [grid, grid]]
    ends = write_clip_tokens(folder)
    small = {"hidden_size": width, "num_attention_heads": 2}
    layers = {**small, "intermediate_size": 32, "num_layers": 1}
    backbone = {"model_type": "sam3_vit_model", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    backbone |= {"num_attention_heads": 2, "image_size": side, "pretrain_image_size": 56, "window_size": 4}
    backbone |= {"global_attn_indexes": [0]}
    vision = {"backbone_config": backbone, "fpn_hidden_size": width, "backbone_feature_sizes": sizes}
    text = {**small, **ends, "intermediate_size": 32, "num_hidden_layers": 1, "projection_dim": 8}
    detector = {
        "vision_config": vision,
        "text_config": {**text, "model_type": "clip_text_model", "max_position_embeddings": 32},
        "geometry_encoder_config": layers,
        "detr_encoder_config": layers,
        "detr_decoder_config": {**layers, "num_queries": 4},
        "mask_decoder_config": small,
    }
    tracker = {
        "vision_config": {"model_type": "sam3_vision_model", **vision},
        "prompt_encoder_config": {"hidden_size": width, "image_size": side},
        "mask_decoder_config": {**small, "mlp_dim": 32, "iou_head_hidden_dim": 16},
        "image_size": side,
    }
    config = Sam3VideoConfig(
        detector_config={"model_type": "sam3", **detector},
        tracker_config={"model_type": "sam3_tracker_video", **tracker},
    )
    Sam3VideoModel(config).save_pretrained(folder)
    path, twice = folder / "model.safetensors", "tracker_model.tracker_model."  # transformers 5.24 doubles the prefix
    state = {name.replace(twice, "tracker_model."): value for name, value in load_file(path).items()}
    save_file(state, path, metadata={"format": "pt"})
    return folder
