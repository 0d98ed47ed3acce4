"""Small random networks that the tests share."""

from wsss.models.cnn import CNN, build_cnn
from wsss.models.vit import ViT, build_vit


def tiny_vit(num_classes: int = 1, **options) -> ViT:
    """A two-block ViT for 32 px images: 4 x 4 patches."""
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, **options}
    return build_vit(num_classes, timm_name="vit_tiny_patch16_224", timm_options=size)


def tiny_cnn(num_classes: int = 1) -> CNN:
    """A ResNet of four narrow stages; 32 px images give a 4 x 4 map."""
    narrow = {"channels": (8, 8, 16, 16), "layers": (1, 1, 1, 1)}
    return build_cnn(num_classes, timm_name="resnet10t", output_stride=8, timm_options=narrow)
