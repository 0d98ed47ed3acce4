"""A run's student as one safetensors file, which has in its metadata what is needed to predict with it."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from launcher.config.file import check_content
from launcher.config.sections import Config
from launcher.errors import RunError
from launcher.files import appearing, read_json
from launcher.run.build import drop_weights, load_trained
from launcher.run.folder import EVALUATION, HERE, Run
from shards.folder import ShardFolder
from shards.schema import ClassSet, DataError
from wsss.methods import METHODS
from wsss.methods.base import Method
from wsss.models.base import Outputs

LOOKED_AT = 64  # training images whose sizes are read
Affine = tuple[Tensor, Tensor]  # (K, D) and (K,): a map that is linear in the student's patches


def write_student(run: Path, out: Path, *, checkpoint: Path | None = None) -> Path:
    """The student's parameters and buffers, under its own names, with what is needed to predict with it as metadata.

    Args:
        checkpoint: of the run; None = the newest.

    Raises:
        RunError: no run there, no complete checkpoint in it, or the file cannot be written.
    """
    of, method, checkpoint = load_trained(Run(run), checkpoint)
    config = of.config.model_copy(update={"model": drop_weights(of.config.model)})
    size = training_size(of.config)
    facts = {
        "format": "pt",
        "run": str(run),
        "checkpoint": checkpoint.name,
        "commit": str(of.about.get("git_commit")),
        "model": json.dumps(of.config.model.model_dump(mode="json")),
        "config": json.dumps(config.model_dump(mode="json")),
        "class_set": of.class_set.name,
        "classes": json.dumps(of.class_set.classes),
        "train_size": json.dumps(size),
        "evaluation": json.dumps(thresholds_of(run)),
        "maps": json.dumps({kind: [encode(x) for x in affine] for kind, affine in further_maps(method).items()}),
    }
    weights = {name: tensor.contiguous() for name, tensor in method.student.state_dict().items()}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with appearing(out) as temporary:
            save_file(weights, temporary, metadata=facts)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{out}: cannot be written ({error}); name another file, or make room") from error
    return out


class Exported(NamedTuple):
    """What a file of `wsss export` holds.

    Attributes:
        maps: the maps of further kinds, see further_maps.
        evaluation: thresholds by source, see thresholds_of; None if the run was not evaluated.
        train_size: see training_size.
    """

    config: Config
    class_set: ClassSet
    checkpoint: str
    weights: dict[str, Tensor]
    maps: dict[str, Affine]
    evaluation: dict[str, Any] | None
    train_size: tuple[int, int] | None


def read_exported(path: Path) -> Exported:
    """Raises RunError if it is no file of `wsss export`, or one from before these could predict."""
    try:
        with safe_open(path, "pt") as file:
            facts: Mapping[str, str] = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path}: is no file of `wsss export` ({error})") from error
    if "config" not in facts:
        raise RunError(f"{path}: does not say how its network was trained; write it anew with `wsss export RUN --out`")
    size = json.loads(facts["train_size"])
    return Exported(
        config=check_content(json.loads(facts["config"]), path, HERE),
        class_set=ClassSet(name=facts["class_set"], classes=tuple(json.loads(facts["classes"]))),
        checkpoint=facts["checkpoint"],
        weights=weights,
        maps={kind: (decode(w), decode(b)) for kind, (w, b) in json.loads(facts["maps"]).items()},
        evaluation=json.loads(facts["evaluation"]),
        train_size=None if size is None else (size[0], size[1]),
    )


def further_maps(method: Method) -> dict[str, Affine]:
    """{kind: (weight, bias)} of the maps that a method which needs a second network reads from the student's patches,
    such as `project`; found by reading each channel alone."""
    if not (method.needs_teacher or method.needs_partner):
        return {}
    channels, classes = method.student.feature_dim, method.student.head.out_channels
    patches = torch.cat([torch.eye(channels), torch.zeros(1, channels)])[..., None, None].to(method.student.head.weight)
    nothing = patches.new_zeros(channels + 1, classes, 1, 1)
    with torch.no_grad():
        maps = method.maps_of(Outputs(nothing[..., 0, 0], patches, nothing))
    found = {kind: raw[..., 0, 0] for kind, raw in maps.items() if kind != "class_map"}
    return {kind: ((raw[:-1] - raw[-1]).T.contiguous(), raw[-1]) for kind, raw in found.items()}


def thresholds_of(run: Path) -> dict[str, Any] | None:
    """What evaluation.json says of thresholds: its checkpoint, its headline and the thresholds of every source."""
    path = run / EVALUATION
    if not path.is_file():
        return None
    report = read_json(path)
    choices = ("fixed", "tuned")
    sources = {
        source: {choice: (figures.get(choice) or {}).get("threshold") for choice in choices}
        for source, figures in report["sources"].items()
    }
    return {"checkpoint": report["checkpoint"], "headline": report.get("headline"), "sources": sources}


def training_size(config: Config) -> tuple[int, int] | None:
    """(height, width) in pixels, at the median, of the images that the network's view was made of, which tells at what
    scale it knows things. None where that cannot be known: the shards are not here, or their images were no larger than
    the view that they were squashed to, so that somebody scaled them before."""
    view, folder = config.data.image_size, config.data.train
    if not isinstance(folder, Path) or not folder.is_dir():
        return None
    try:
        shards = ShardFolder(folder)
        numbers = np.linspace(0, len(shards) - 1, min(LOOKED_AT, len(shards))).astype(int)
        height, width = np.median([shards.about(int(number))["size"] for number in numbers], axis=0).round().astype(int)
    except (DataError, KeyError):
        return None
    squashed = METHODS[config.method.name].views == "plain"
    return None if squashed and height * width <= view * view else (int(height), int(width))


def encode(x: Tensor) -> Any:
    return [list(x.shape), base64.b64encode(x.float().cpu().numpy().tobytes()).decode()]


def decode(text: Any) -> Tensor:
    shape, data = text
    return torch.from_numpy(np.frombuffer(base64.b64decode(data), dtype=np.float32).copy()).view(*shape)
