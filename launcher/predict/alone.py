"""A student without its teacher or partner: its maps, and the safetensors file that holds it."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from launcher.errors import RunError
from launcher.predict.facts import Facts, read_facts
from launcher.run.build import build_method, build_network
from wsss.methods.base import Method
from wsss.models.base import Network, Outputs

Affine = tuple[Tensor, Tensor]  # (K, D) and (K,): a map that is linear in the student's patches


class Reader(Method):
    """A student without the network that it learned from: all that prediction needs of their method.

    Args:
        maps: {kind: (weight, bias)} of maps that are linear in the patches.
    """

    def __init__(self, student: Network, maps: dict[str, Affine]) -> None:
        super().__init__()
        self.student = student
        self.reads = nn.ModuleDict()
        for kind, (weight, bias) in maps.items():
            layer = nn.Conv2d(weight.shape[1], weight.shape[0], kernel_size=1)
            layer.load_state_dict({"weight": weight[..., None, None], "bias": bias})
            self.reads[kind] = layer

    def maps_of(self, out: Outputs) -> dict[str, Tensor]:
        return {**super().maps_of(out), **{kind: layer(out.patches_BDhw) for kind, layer in self.reads.items()}}


def further_maps(method: Method) -> dict[str, Affine]:
    """{kind: (weight, bias)} of maps, such as `project`, that a method with a second network computes from the
    student's patches; found by reading each channel separately."""
    if not (method.needs_teacher or method.needs_partner):
        return {}
    channels, classes = method.student.feature_dim, method.student.num_classes
    patches = torch.cat([torch.eye(channels), torch.zeros(1, channels)])[..., None, None].to(method.student.head.weight)
    nothing = patches.new_zeros(channels + 1, classes, 1, 1)
    with torch.no_grad():
        maps = method.maps_of(Outputs(nothing[..., 0, 0], patches, nothing))
    found = {kind: raw[..., 0, 0] for kind, raw in maps.items() if kind != "class_map"}
    return {kind: ((raw[:-1] - raw[-1]).T.contiguous(), raw[-1]) for kind, raw in found.items()}


def describe_weights(method: Method) -> tuple[dict[str, Tensor], str]:
    """The contents of a safetensors file: the student's weights under its own names, and its further maps."""
    weights = {name: tensor.contiguous() for name, tensor in method.student.state_dict().items()}
    return weights, json.dumps({kind: [encode(x) for x in affine] for kind, affine in further_maps(method).items()})


def read_safetensors(path: Path) -> tuple[Facts, Method]:
    """Open a safetensors file. Raises RunError if `wsss export` did not write it."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path}: is not a file of `wsss export` ({error})") from error
    facts = read_facts(metadata, path)
    config = facts.config
    maps = {kind: (decode(w), decode(b)) for kind, (w, b) in json.loads(metadata["maps"]).items()}
    if maps or config.teacher is not None or config.partner is not None:
        method: Method = Reader(build_network(config.model, facts.class_set), maps)
    else:
        method = build_method(config, facts.class_set)
    try:
        method.student.load_state_dict(weights)
    except RuntimeError as error:
        raise RunError(f"{path}: its weights do not fit the network that it names: {error}") from error
    return facts, method


def encode(x: Tensor) -> Any:
    return [list(x.shape), base64.b64encode(x.float().cpu().numpy().tobytes()).decode()]


def decode(text: Any) -> Tensor:
    shape, data = text
    return torch.from_numpy(np.frombuffer(base64.b64decode(data), dtype=np.float32).copy()).view(*shape)
