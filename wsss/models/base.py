"""What every image classifier of this package gives, and how initial weights get into it.

Shapes: B images, K foreground classes, D feature channels, h x w feature grid, H x W pixels.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
BACKBONES = ("backbone", "encoders")  # parts of a network that know no classes; FrozenNet has several in one
HUB = "hf-hub:"  # before OWNER/NAME: what the network is stands there, so a network or its cache is needed
AttentionInput = tuple[Tensor, Tensor | None]  # what an attention reads: tokens (B, N, D); rotations, of a rotary ViT


@dataclass(frozen=True)
class Outputs:
    """One forward pass.

    Attributes:
        cls_logits_BK: image-level class scores before the sigmoid.
        patches_BDhw: the last feature map (patch tokens of a ViT after its final norm; last stage of a CNN).
        class_map_BKhw: the classifier applied at every position, before any normalisation.
        further_logits: (B, K) scores of further classifiers, for networks with several; each is trained by the labels.
        maps: further raw maps (B, K, h, w) by CAM kind, for networks that have maps of their own.
        seg_logits_BChw: class scores of every position with background first, for segmentation networks.
    """

    cls_logits_BK: Tensor
    patches_BDhw: Tensor
    class_map_BKhw: Tensor
    further_logits: tuple[Tensor, ...] = ()
    maps: Mapping[str, Tensor] = field(default_factory=dict)
    seg_logits_BChw: Tensor | None = None

    def detached(self) -> "Outputs":
        """The same values without their graph."""
        return Outputs(
            self.cls_logits_BK.detach(),
            self.patches_BDhw.detach(),
            self.class_map_BKhw.detach(),
            tuple(logits.detach() for logits in self.further_logits),
            {kind: raw.detach() for kind, raw in self.maps.items()},
            None if self.seg_logits_BChw is None else self.seg_logits_BChw.detach(),
        )


torch.export.register_dataclass(Outputs)  # a network can be exported as it is


class Network(nn.Module):
    """An image classifier with feature maps. Takes RGB images in [0, 1] and normalises them itself.

    Each network has its own mean and standard deviation, those its initial weights were trained with, so that a
    student and a teacher of different origin can look at one batch.

    Args:
        feature_dim: D, the channels of `patches_BDhw`.
        stride: pixels per cell of the feature grid.
        num_classes: K.
        mean, std: of the RGB channels, for images in [0, 1].

    Attributes:
        num_classes: K, of the class map; a head may give more, or be no layer (see clip.TextHead).
        unread: names of parameters that no output depends on; they are frozen, see dry_run.py.
        origin: which parts it has of another network of ours, in words; "" where it has none.
        no_graph: why it cannot be exported as one graph of any size, in words; "" where nothing is known against it.
    """

    mean: Tensor
    std: Tensor
    unread: tuple[str, ...] = ()
    origin: str = ""
    no_graph: str = ""

    def __init__(
        self, *, feature_dim: int, stride: int, num_classes: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.stride = stride
        self.num_classes = num_classes
        self.head = nn.Conv2d(feature_dim, num_classes, kernel_size=1)  # 1x1: a classifier at every position
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.constant_(self.head.bias, 0.0)  # type: ignore[arg-type]  # there is one; torch says maybe
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def normalise(self, image: Tensor) -> Tensor:
        return (image - self.mean) / self.std

    def forward(self, image: Tensor) -> Outputs:
        raise NotImplementedError

    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError if it takes no images of so many pixels; it says which it takes."""

    def check_images(self, images: int) -> None:
        """Raise ValueError if it cannot be trained on so many images at a time."""

    def check_begun(self) -> None:
        """Raise ValueError if it cannot be trained as it is: what it does not learn was not given."""

    def grad_cam_layer(self, index: int) -> nn.Module:
        """The layer whose output Grad-CAM weighs; index as in a list of blocks or stages, -1 the last."""
        raise NotImplementedError

    def as_map(self, activation: Tensor, image: Tensor) -> Tensor:
        """Output of `grad_cam_layer` -> (B, D, h, w)."""
        raise NotImplementedError

    def reading_attention(self) -> AbstractContextManager[list[AttentionInput]]:
        """A list that gets, of each forward pass inside, what the last block's attention reads. It is for attention_of.

        Raises:
            ValueError: there is no attention to read.
        """
        raise ValueError(f"a {type(self).__name__} has no attention to read; choose a ViT with a class token")

    def attention_of(self, read: AttentionInput, image: Tensor) -> Tensor:
        """How much a class token attends to each position, (B, h, w) in [0, 1]."""
        raise NotImplementedError


def layer_at(layers: Any, index: int) -> Any:
    """A module of a list or nn.Sequential by its number. Raises ValueError if there is none of this number."""
    if not -len(layers) <= index < len(layers):
        raise ValueError(f"cam.layers: no layer {index}; this network has {len(layers)}, counted from 0 on or -1 back")
    return layers[index]


def name_at_timm(timm_name: str) -> str:
    """The architecture alone, without the hub and owner before it and the tag of its weights behind it."""
    return timm_name.rpartition("/")[2].partition(".")[0]


def create_backbone(
    timm_name: str, weights: str | None, options: Mapping[str, Any], *, head: Sequence[str], wanted: str
) -> Any:
    """A timm model without its classifier.

    Args:
        weights: null = random, 'timm' = timm's pretrained weights (downloads), else a path, loaded strictly.
        options: further arguments of timm's constructor.
        head: see load_weights.
        wanted: what to choose instead where timm cannot build it with these options.

    Raises:
        ValueError: timm has no such model, or none with these options; its weights cannot be had, or those of the
            path do not fit.
    """
    if not timm_name.startswith(HUB) and not timm.is_model(timm_name):
        near = difflib.get_close_matches(timm_name, timm.list_models(), n=5)
        raise ValueError(f"model.timm_name: timm has no '{timm_name}'; near: {', '.join(near) or 'none'}")
    try:
        backbone = timm.create_model(timm_name, pretrained=weights == "timm", num_classes=0, **options)
    except Exception as error:  # an assertion, a network that does not answer: timm has no error of its own
        reason = f"{type(error).__name__} {error}".strip().splitlines()[0]
        if weights == "timm" and not isinstance(error, AssertionError | TypeError):
            raise ValueError(f"model.weights: timm: {explain_download(timm_name)} ({reason})") from error
        if timm_name.startswith(HUB):
            raise ValueError(
                f"model.timm_name: {timm_name} cannot be built: {reason}. What it is stands on the hub: fetch it once "
                "where there is a network (`hf download OWNER/NAME`), or take timm's own name for it"
            ) from error
        given = ", ".join(f"{name}={value}" for name, value in options.items())
        raise ValueError(
            f"model.timm_name: timm cannot build '{timm_name}' with {given}: {reason}; choose {wanted}"
        ) from error
    if weights not in (None, "timm"):
        load_weights(backbone, weights, head=head)
    return backbone


def explain_download(timm_name: str) -> str:
    """How to get weights of timm to a machine that cannot download them."""
    about = timm.get_pretrained_cfg(timm_name)
    if about is None or not about.hf_hub_id:
        return f"there are no pretrained weights of '{timm_name}' at a known place; give a file, model.weights=PATH"
    return (
        f"the pretrained weights of '{timm_name}' cannot be downloaded here. Get model.safetensors of "
        f"https://huggingface.co/{about.hf_hub_id} on a machine with a network, put it anywhere and name it: "
        "model.weights=PATH/model.safetensors"
    )


def load_weights(module: nn.Module, path: str | Path, *, head: Iterable[str]) -> None:
    """Load initial weights strictly: every name and shape must fit, but for the classifier, which is new.

    Args:
        path: a .safetensors file, or a torch file of tensors (unpickled with weights_only).
        head: first parts of the names that belong to the classifier that the weights were trained with.

    Raises:
        ValueError: file missing or unreadable, or names or shapes that do not fit; says which.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"{path}: weights file is missing; give a path, a run, 'timm' (downloads) or null (random weights)"
        )
    state = read_state(path)
    wanted, head = module.state_dict(), tuple(head)  # the norm in ConvNeXt's head stays where its classifier goes
    state = {name: one for name, one in state.items() if name in wanted or not name.split(".")[0].startswith(head)}
    missing = sorted(set(wanted) - set(state))
    unexpected = sorted(set(state) - set(wanted))
    reshaped = sorted(
        f"{name} {tuple(state[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in set(wanted) & set(state)
        if state[name].shape != wanted[name].shape
    )
    if missing or unexpected or reshaped:
        raise ValueError(
            f"{path}: these weights belong to another network than {type(module).__name__}: "
            f"{len(missing)} names missing {missing[:3]}, {len(unexpected)} unknown {unexpected[:3]}, "
            f"{len(reshaped)} of another shape {reshaped[:3]}; choose the model that they were saved from"
        )
    module.load_state_dict({name: value.to(wanted[name].dtype) for name, value in state.items()})


def load_parts(
    network: nn.Module, state: Mapping[str, Tensor], where: str, *, only_backbone: bool
) -> tuple[list[str], list[str]]:
    """Load of another network of ours the parts, such as `backbone` and `head`, that fit whole by names and shapes.

    Args:
        state: {name: tensor} of the other network.
        only_backbone: leave all else as it is, as where the classes are others.

    Returns:
        The parts that were taken, and those that were not.

    Raises:
        ValueError: the backbone does not fit, or nothing does.
    """
    wanted = network.state_dict()
    taken, new = list[str](), list[str]()
    for part in dict.fromkeys(name.split(".")[0] for name in wanted):
        shapes = [{n: tuple(t.shape) for n, t in one.items() if n.split(".")[0] == part} for one in (wanted, state)]
        fits = shapes[0] == shapes[1] and (part in BACKBONES or not only_backbone)
        (taken if fits else new).append(part)
    if not taken or any(part in new for part in BACKBONES):
        lacking = [name for name in wanted if name.split(".")[0] in BACKBONES and name not in state]
        reshaped = [
            f"{name} {tuple(state[name].shape)} instead of {tuple(wanted[name].shape)}"
            for name in wanted
            if name in state and state[name].shape != wanted[name].shape
        ]
        raise ValueError(
            f"{where}: this is another network than {type(network).__name__}: {len(lacking)} names of the backbone are "
            f"missing {lacking[:3]}, {len(reshaped)} have another shape {reshaped[:3]}; begin with a run of the same "
            "model.timm_name and timm_options"
        )
    with torch.no_grad():
        for name, tensor in wanted.items():
            if name.split(".")[0] in taken:
                tensor.copy_(state[name])
    return taken, new


def read_state(path: Path) -> dict[str, Tensor]:
    """{name: tensor} of a weights file; a dict of dicts is entered at 'state_dict' or 'model'."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both libraries raise a different type for each way in which a file is none of its own
        raise ValueError(f"{path}: not a weights file that can be loaded safely ({error})") from error
    for wrapper in ("state_dict", "model"):
        state = state.get(wrapper, state)
    return state
