"""What an exported file of any format says about its network: all that prediction needs besides the weights."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm

from launcher.config.file import check_content
from launcher.config.whole import Config
from launcher.errors import RunError
from launcher.files import read_json
from launcher.run.build import drop_weights
from launcher.run.folder import EVALUATION, HERE, Run
from launcher.run.start import weights_options
from shards.folder import ShardFolder
from shards.schema import ClassSet, DataError
from wsss import __version__
from wsss.methods import METHODS
from wsss.models.base import Network

LOOKED_AT = 64  # number of training images whose sizes are read


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What prediction reads from an exported file's metadata.

    Attributes:
        kinds: of maps that need no gradient.
        chosen_kind: kind of map chosen at export; None = none was chosen.
        evaluation: see thresholds_of; None if the run was not evaluated.
        train_size: see training_size.
        mean, std: with which the network normalises its images.
    """

    config: Config
    class_set: ClassSet
    checkpoint: str
    kinds: tuple[str, ...]
    chosen_kind: str | None
    evaluation: dict[str, Any] | None
    train_size: tuple[int, int] | None
    stride: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def gather_facts(run: Run, checkpoint: str, network: Network, licence: str | None) -> dict[str, str]:
    """The metadata of an exported file, except the defaults of a prediction.

    Args:
        licence: in the user's words; None = what is known about where the weights come from.
    """
    config = run.config.model_copy(update={"model": drop_weights(run.config.model)})
    return {
        "format": "pt",  # expected by readers of safetensors
        "wsss": __version__,
        "run": str(run),
        "checkpoint": checkpoint,
        "commit": str(run.about.get("git_commit")),
        "packages": json.dumps(run.about.get("packages")),
        "model": json.dumps(run.config.model.model_dump(mode="json")),
        "config": json.dumps(config.model_dump(mode="json")),
        "class_set": run.class_set.name,
        "classes": json.dumps(run.class_set.classes),
        "train_size": json.dumps(training_size(run.config)),
        "evaluation": json.dumps(thresholds_of(run.folder)),
        "input": f"RGB in [0, 1], (batch, 3, height, width), sides multiples of {network.stride}; normalised inside",
        "input_size": str(run.config.data.image_size),
        "stride": str(network.stride),
        "mean": json.dumps(network.mean.flatten().tolist()),
        "std": json.dumps(network.std.flatten().tolist()),
        "licence": licence or licence_note(run.config),
    }


def read_facts(facts: Mapping[str, str], path: Path) -> Facts:
    """The metadata of an exported file. Raises RunError if it says too little to predict with."""
    if "config" not in facts:
        raise RunError(f"{path}: does not say how its network was trained; write it again with `wsss export RUN --out`")
    size = json.loads(facts["train_size"])
    return Facts(
        config=check_content(json.loads(facts["config"]), path, HERE),
        class_set=ClassSet(name=facts["class_set"], classes=tuple(json.loads(facts["classes"]))),
        checkpoint=facts["checkpoint"],
        kinds=tuple(json.loads(facts["kinds"])),
        chosen_kind=json.loads(facts["chosen_kind"]),
        evaluation=json.loads(facts["evaluation"]),
        train_size=None if size is None else (size[0], size[1]),
        stride=int(facts["stride"]),
        mean=tuple(json.loads(facts["mean"])),
        std=tuple(json.loads(facts["std"])),
    )


def without_places(text: str) -> str:
    """A text with each absolute path reduced to its name, since folders of this machine are private and no help."""
    text = re.sub(r'"/(?:[^"/]+/)+(?=[^"/]+")', '".../', text)  # a string of JSON may hold spaces
    return re.sub(r"(?<![\w.:/])/(?:[^\s'\"=,\]}/]+/)+(?=[^\s'\"=,\]}/])", ".../", text)


def licence_note(config: Config) -> str:
    """A note on where the weights come from, whose licence they have."""
    model, sources = config.model, []
    for option in weights_options(model):
        if (weights := model.options[option]) is None:
            continue
        name = model.options.get("timm_name" if option == "weights" else option.removesuffix("_weights"))
        sources.append(describe_timm(str(name)) if weights == "timm" else str(weights))
    if not sources:
        return "the weights began random: their licence is for those who trained them to choose"
    of = "that of this source" if len(sources) == 1 else "those of these sources"
    return f"the weights began with {' and '.join(sources)}: their licence is {of}"


def describe_timm(name: str) -> str:
    """A network of timm, where its weights are and, if timm states it, their licence."""
    about = timm.get_pretrained_cfg(name)
    known = [] if about is None else [f"https://huggingface.co/{about.hf_hub_id}" if about.hf_hub_id else ""]
    known += [] if about is None else [f"{about.license} as timm states it" if about.license else ""]
    return ", ".join([f"timm's {name}", *filter(None, known)])


def thresholds_of(run: Path) -> dict[str, Any] | None:
    """What evaluation.json says about thresholds: checkpoint, headline, the thresholds of every source, the gate, and
    the tune split."""
    path = run / EVALUATION
    if not path.is_file():
        return None
    report = read_json(path)
    choices = ("fixed", "tuned")
    sources = {
        source: {choice: (figures.get(choice) or {}).get("threshold") for choice in choices}
        for source, figures in report["sources"].items()
    }
    gate = (report.get("gate") or {}).get("tuned")
    same = {name: report.get(name) for name in ("checkpoint", "headline", "tune")}
    return {**same, "sources": sources, "gate": gate}


def training_size(config: Config) -> tuple[int, int] | None:
    """Median (height, width) in pixels of the training images, which gives the scale at which the network knows things.
    None if that is not known: the shards are not here, or the images that were squashed are no larger than the
    network's view, so someone had scaled them before."""
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
