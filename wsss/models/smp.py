"""Networks of segmentation_models_pytorch for stage 3: its decoders on its encoders or on timm's.

Shapes: B images, K foreground classes, C = K + 1 classes with background 0, D channels, h x w grid of the decoder.
"""

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import timm
from torch import Tensor, nn

from wsss.extras import needs
from wsss.models.base import IMAGENET_MEAN, IMAGENET_STD, Outputs
from wsss.models.cnn import HEAD, is_of_one_size
from wsss.models.dry_run import must_run, try_network
from wsss.models.segmentation import SegmentationNetwork, segmentation_outputs
from wsss.models.weights import create_backbone, load_weights

TIMM = "tu-"  # before a name of timm, as the package writes it
HEADS = (*HEAD, "last_linear")
OURS = {  # arguments that are given here, and those of parts that are left out
    *("encoder_name", "encoder_weights", "in_channels", "classes"),
    *("activation", "aux_params", "upsampling"),
}
NOT_OURS = ("dpt", "pan")  # of plain ViTs, with a head of its own; pools small images to nothing


class SMP(SegmentationNetwork):
    """Encoder -> decoder -> the package's own classifier at each position of the decoder's grid, which is not enlarged
    here: losses and masks resize class scores themselves.

    Args:
        model: of segmentation_models_pytorch, for C classes.
    """

    def __init__(self, model: Any, num_classes: int, mean: Sequence[float], std: Sequence[float]) -> None:
        classifier = model.segmentation_head[0]
        stride = int(model.encoder.output_stride)
        super().__init__(feature_dim=classifier.in_channels, stride=stride, num_classes=num_classes, mean=mean, std=std)
        self.backbone, self.decoder, self.head = model.encoder, model.decoder, classifier

    def forward(self, image: Tensor) -> Outputs:
        self.check_size(*image.shape[-2:])
        features_BDhw = self.decoder(self.backbone(self.normalise(image)))
        return segmentation_outputs(self.head(features_BDhw), features_BDhw)

    def check_size(self, height: int, width: int) -> None:
        if height % self.stride or width % self.stride:
            raise ValueError(
                f"images of {height} x {width} px; this decoder takes sides that are multiples of {self.stride}"
            )


def build_smp(
    num_classes: int,
    *,
    architecture: str,
    encoder: str,
    weights: str | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    options: Mapping[str, Any] | None = None,
) -> SMP:
    """A network of segmentation_models_pytorch.

    Args:
        num_classes: K, without background.
        architecture: unet, unetplusplus, manet, linknet, fpn, pspnet, deeplabv3, deeplabv3plus, upernet or
            segformer.
        encoder: a name of the package's own, such as mit_b2 or resnet50, or tu-NAME with a name of timm, such as
            tu-convnext_tiny.
        weights: of the encoder; null = random; a file, loaded strictly; of a tu-NAME also 'timm' (downloads).
        mean, std: RGB normalisation; null = what timm states for a tu-NAME, else ImageNet's.
        options: further arguments of the architecture (decoder_channels, encoder_depth, encoder_output_stride, ...), of
            a tu-NAME also timm's.

    Raises:
        MissingPackage: segmentation_models_pytorch is not installed.
        ValueError: there is no such architecture or encoder, they do not go together, or the weights do not fit.
    """
    with needs("smp"):
        import segmentation_models_pytorch as smp
    architectures = [name for name in smp.MODEL_ARCHITECTURES_MAPPING if name not in NOT_OURS]
    if architecture not in architectures:
        raise ValueError(f"model.architecture: there is no '{architecture}'; choose one of {', '.join(architectures)}")
    check_encoder(encoder, smp.encoders.get_encoder_names())
    check_options(options or {}, smp.MODEL_ARCHITECTURES_MAPPING[architecture], of_timm=encoder.startswith(TIMM))
    of_any_size = {"strict_img_size": False} if is_of_one_size(encoder.removeprefix(TIMM)) else {}
    about = timm.get_pretrained_cfg(encoder.removeprefix(TIMM)) if encoder.startswith(TIMM) else None
    with must_run(encoder, f"{architecture} encoder", key="model.encoder"):
        model = smp.MODEL_ARCHITECTURES_MAPPING[architecture](
            encoder_name=encoder, encoder_weights=None, classes=num_classes + 1, **of_any_size, **(options or {})
        )
    if weights is not None and encoder.startswith(TIMM):
        with must_run(
            encoder, f"{architecture} encoder with these weights", key="model.encoder", instead="other weights"
        ):
            load_of_timm(model.encoder.model, encoder.removeprefix(TIMM), weights, of_any_size)
    elif weights == "timm":
        raise ValueError(
            f"model.weights: '{encoder}' is not an encoder of timm; give a file of weights, or an encoder of timm, "
            "model.encoder=tu-NAME"
        )
    elif weights is not None:
        load_weights(model.encoder, weights, head=HEADS)
    known: Any = (IMAGENET_MEAN, IMAGENET_STD) if about is None else (about.mean, about.std)
    network = SMP(model, num_classes, mean or known[0], std or known[1])
    try_network(network, encoder, stride=network.stride, grad_cam=False, key="model.encoder")
    return network


def load_of_timm(features: nn.Module, timm_name: str, weights: str, options: Mapping[str, Any]) -> None:
    """Load weights of a whole network of timm into its stages alone, whose parts have flatter names: stages_0 for
    stages.0. Raises ValueError if they do not fit the network, KeyError or RuntimeError if it has other stages."""
    whole = create_backbone(timm_name, weights, options, head=HEADS, wanted="a network of timm")
    flat = {name.replace(".", "_"): value for name, value in whole.state_dict().items()}
    features.load_state_dict({name: flat[name.replace(".", "_")] for name in features.state_dict()})


def check_options(options: Mapping[str, Any], architecture: Callable, *, of_timm: bool) -> None:
    """Raise ValueError for an option that would have no effect: one that is set here, or that the architecture does not
    have."""
    known = set(inspect.signature(architecture).parameters) - OURS - {"kwargs"}
    for name in options:
        if name in OURS or (name not in known and not of_timm):
            raise ValueError(f"model.options: there is no '{name}'; choose from {', '.join(sorted(known))}")


def check_encoder(name: str, known: Sequence[str]) -> None:
    """Raise ValueError if there is no such encoder; it names those that are near."""
    of_timm = name.startswith(TIMM)
    if timm.is_model(name.removeprefix(TIMM)) if of_timm else name in known:
        return
    near = difflib.get_close_matches(name, [TIMM + one for one in timm.list_models()] if of_timm else known, n=5)
    raise ValueError(
        f"model.encoder: there is no '{name}'; near: {', '.join(near) or 'none'}; tu-NAME names an encoder of timm"
    )
