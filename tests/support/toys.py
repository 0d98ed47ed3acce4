"""Options that make ToCo, M-SEE and `frozen` take a step in a second: of the method, and of a whole run."""

SMALL = {"crop_px": 16, "crop_num": 2, "projection_dim": 8, "projection_out": 6, "bottleneck": 4, "par_iterations": 2}

VIT = "{img_size: 32, patch_size: 8, embed_dim: 16, depth: 4, num_heads: 2}"
RUN = [
    "data.train=pets/train",
    "data.val=pets/val",
    "data.image_size=32",
    "data.global_batch_size=4",
    "data.workers=0",
    "model.weights=null",
    "model.timm_name=vit_tiny_patch16_224",
    f"model.timm_options={VIT}",
    "model.decoder_dim=8",
    "method.par_iterations=1",
    "method.seg_from=0",
    "train.steps=1",
    "train.warmup_steps=0",
    "train.save_every=null",
    "segment.workers=0",
    "evaluate.gallery=2",
]
TOY = [
    *RUN,
    "model.dilation=1",
    "method.crop_px=16",
    "method.crop_num=2",
    "method.projection_dim=8",
    "method.projection_out=8",
    "method.bottleneck=8",
    "method.contrast_from=0",
    "method.aux_labels_before=0",
]
TOY_FROZEN = [
    *RUN,
    "model.texts=[]",
    "model.other_texts=[]",
    "model.text_weights=null",
    "model.second=vit_tiny_patch16_224",
    f"model.second_options={VIT}",
    "model.second_weights=null",
    "model.decoder_blocks=1",
    "model.decoder_heads=2",
    "method.attended=2",
    "method.agree_from=0",
]
