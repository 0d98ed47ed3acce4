"""Small random networks that the tests share."""

from wsss.models.cnn import CNN, build_cnn
from wsss.models.pcm import PCM, build_pcm
from wsss.models.segmenter import Segmenter, build_segmenter
from wsss.models.vit import ViT, build_vit


def tiny_vit(num_classes: int = 1, **options) -> ViT:
    """A two-block ViT for 32 px images: 4 x 4 patches."""
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, **options}
    return build_vit(num_classes, timm_name="vit_tiny_patch16_224", timm_options=size)


def tiny_cnn(num_classes: int = 1) -> CNN:
    """A ResNet of four narrow stages; 32 px images give a 4 x 4 map."""
    narrow = {"channels": (8, 8, 16, 16), "layers": (1, 1, 1, 1)}
    return build_cnn(num_classes, timm_name="resnet10t", output_stride=8, timm_options=narrow)


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
