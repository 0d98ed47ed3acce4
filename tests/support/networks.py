"""Small random networks that the tests share."""

import torch

from wsss.models.affinity_net import AffinityNet, build_affinity_net
from wsss.models.cnn import CNN, build_cnn
from wsss.models.deeplab import DeepLab, build_deeplab
from wsss.models.frozen import FrozenNet, build_frozen
from wsss.models.pcm import PCM, build_pcm
from wsss.models.segmenter import Segmenter, build_segmenter
from wsss.models.toco import ToCoNet, build_toco
from wsss.models.vit import ViT, build_vit


def tiny_vit(num_classes: int = 1, **options) -> ViT:
    """A two-block ViT for 32 px images: 4 x 4 patches."""
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, **options}
    return build_vit(num_classes, timm_name="vit_tiny_patch16_224", timm_options=size)


def tiny_cnn(num_classes: int = 1) -> CNN:
    """A ResNet of four narrow stages; 32 px images give a 4 x 4 map."""
    narrow = {"channels": (8, 8, 16, 16), "layers": (1, 1, 1, 1)}
    return build_cnn(num_classes, timm_name="resnet10t", output_stride=8, timm_options=narrow)


SWIN = {"patch_size": 4, "window_size": 2, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2)}


def tiny_swin(num_classes: int = 1) -> CNN:
    """A Swin of two stages, whose second shifts windows of 2 x 2; 32 px images give a 4 x 4 map."""
    return build_cnn(num_classes, timm_name="swin_tiny_patch4_window7_224", output_stride=None, timm_options=dict(SWIN))


def tiny_pcm(num_classes: int = 1) -> PCM:
    """The same ResNet with the pixel correlation module and its random channel."""
    narrow = {"channels": (8, 8, 16, 16), "layers": (1, 1, 1, 1)}
    return build_pcm(
        num_classes,
        timm_name="resnet10t",
        output_stride=8,
        conv_dim=8,
        f8_dim=4,
        affinity_dim=8,
        background=True,
        timm_options=narrow,
    )


def tiny_segmenter(num_classes: int = 1) -> Segmenter:
    """The tiny ViT with a mask transformer of one block."""
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return build_segmenter(num_classes, timm_name="vit_tiny_patch16_224", decoder_layers=1, timm_options=size)


def tiny_deeplab(num_classes: int = 2, **options) -> DeepLab:
    """A ResNet of four narrow stages with DeepLabV3+'s decoder; its stride is 16."""
    narrow = {"channels": (8, 8, 16, 24), "layers": (1, 1, 1, 1), "zero_init_last": False}
    small = {"timm_options": narrow, "rates": (1, 2), "aspp_dim": 16, "low_dim": 4, "decoder_dim": 16}
    return build_deeplab(num_classes, timm_name="resnet10t", **{**small, **options})


def tiny_affinity_net(num_classes: int = 1) -> AffinityNet:
    """The same ResNet with AffinityNet's head."""
    narrow = {"channels": (8, 8, 16, 16), "layers": (1, 1, 1, 1)}
    return build_affinity_net(
        num_classes, timm_name="resnet10t", output_stride=8, widths=(2, 3, 4), affinity_dim=6, timm_options=narrow
    )


def tiny_toco(num_classes: int = 3, **options) -> ToCoNet:
    """A three-block ToCo network for 32 px images: 4 x 4 patches, auxiliary classifier on the first block."""
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2}
    return build_toco(
        num_classes, timm_name="vit_tiny_patch16_224", decoder_dim=8, dilation=1, timm_options=size, **options
    )


def tiny_frozen(num_classes: int = 1, **options) -> FrozenNet:
    """Two frozen ViTs of two blocks, the second of other patches, and a decoder of one block."""
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return build_frozen(
        num_classes,
        timm_name="vit_tiny_patch16_224",
        timm_options=size,
        **{
            "second": "vit_tiny_patch16_224",
            "second_options": {**size, "patch_size": 16, "embed_dim": 8},
            "decoder_dim": 8,
            "decoder_blocks": 1,
            "decoder_heads": 2,
            **options,
        },
    )


def two_view_batch(num_classes: int = 3, images: int = 2, size: int = 32, seed: int = 0) -> dict:
    """A random batch as the loader gives it to methods that look at two views; every image shows one class or two."""
    random = torch.Generator().manual_seed(seed)
    present = torch.stack([torch.randperm(num_classes, generator=random)[:2] for _ in range(images)])
    present[::2, 1:] = -1
    image_label = torch.zeros(images, num_classes + 1).scatter_(1, present % (num_classes + 1), 1.0)[:, :num_classes]
    neutral = torch.tensor([1.0, 1, 1, 0, 0, 0, 0, 0])
    photometric = neutral.repeat(images, 3, 1)
    photometric[1::2, 2, -1] = 1.0  # every second local source is mirrored
    return {
        "image": torch.rand(images, 3, size, size, generator=random),
        "view2": torch.randint(0, 256, (images, 3, size, size), generator=random, dtype=torch.uint8),
        "photometric": photometric,
        "main_flip": torch.zeros(images, dtype=torch.bool),
        "seed": torch.arange(images),
        "box": torch.tensor([[0, size, 0, size]] * (images - 1) + [[0, size, size // 4, size]]),
        "image_label": image_label,
        "present": present,
    }
