"""What `model.weights` means if it is a run, a checkpoint or an exported student, that is, one of our own networks."""

import json
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from launcher.config.options import Named
from launcher.errors import ConfigError
from launcher.run import steps
from launcher.run.folder import Run, is_run
from wsss.models.weights import is_fetched

STUDENT = "student."  # begins the names of a checkpoint that are the student's


class Start(NamedTuple):
    """A trained student that a network starts from.

    Attributes:
        classes: those it was trained on; None if unknown.
        model: config of its network; None if unknown.
        state: {name: tensor} under its own names.
    """

    place: str
    classes: tuple[str, ...] | None
    model: Named | None
    state: dict[str, Tensor]


def weights_options(named: Named) -> list[str]:
    """The options that say where initial weights lie: `weights`, and those whose names end in _weights and whose values
    are text, as of a network of several parts."""
    return [k for k, v in named.options.items() if k == "weights" or (k.endswith("_weights") and isinstance(v, str))]


def find_further_weights(named: Named) -> dict[str, Path]:
    """{option: file} of the initial weights besides `weights` that are there; of a folder its model.safetensors."""
    places = {option: Path(named.options[option]) for option in weights_options(named) if option != "weights"}
    files = {option: place / steps.MODEL if place.is_dir() else place for option, place in places.items()}
    return {option: file for option, file in files.items() if file.is_file()}


def name_absent(named: Named, section: str) -> list[str]:
    """Initial weights of `model:` or `partner:` that are not on this machine, a sentence each."""
    options = named.options
    of = {"weights": options.get("timm_name") or options.get("encoder"), "second_weights": options.get("second")}
    found = []
    for option in weights_options(named):
        value, name = options[option], str(of.get(option) or "").removeprefix("tu-")
        if value == "timm" and not is_fetched(name):
            found.append(
                f"{section}.{option}: the weights of '{name}' must be downloaded, since they are not in this machine's "
                f"cache; without internet give a file, {section}.{option}=PATH"
            )
        elif value not in (None, "timm") and not Path(value).exists():
            found.append(f"{section}.{option}: {value} does not exist; it is assumed to be there")
    return found


def find_weights(named: Named) -> Path | None:
    """The file that the weights of `model:` or `partner:` mean; None for null, 'timm' and what is not there.

    Raises:
        ConfigError: a folder that is neither a run nor a checkpoint; a graph.
        RunError: a run without a complete checkpoint.
    """
    weights = named.options.get("weights")
    if weights in (None, "timm"):
        return None
    path = Path(weights)
    if path.is_dir():
        folder = Run(path).checkpoint() if is_run(path) else path
        if not steps.is_complete(folder) and not is_exported(folder / steps.MODEL):
            raise ConfigError(
                f"model.weights: {path} is a folder, but neither a run with a checkpoint nor a complete checkpoint "
                "(RUN/step_NNNNNNN), nor one of `wsss export --hub`; give one, or a file"
            )
        return folder / steps.MODEL
    if path.suffix in (".pt2", ".onnx") and path.is_file():
        raise ConfigError(
            f"model.weights: {path} is a graph, from which training cannot start; give its run or a .safetensors"
        )
    return path if path.is_file() else None


def is_exported(file: Path) -> bool:
    """Whether this is a safetensors file of `wsss export`."""
    try:
        with safe_open(file, "pt") as opened:
            return {"classes", "model"} <= set(opened.metadata() or {})
    except (SafetensorError, OSError):
        return False


def read_start(named: Named) -> Start | None:
    """The student that a network starts from; None if the weights are not from one of our networks, see
    weights.load_weights.

    Raises:
        ConfigError: see find_weights; a checkpoint without a student.
        RunError: a checkpoint that was damaged after it was written.
    """
    file = find_weights(named)
    if file is None or file.suffix != ".safetensors":
        return None
    try:
        with safe_open(file, "pt") as opened:
            names, about = list(opened.keys()), opened.metadata() or {}
    except (SafetensorError, OSError):
        return None  # load_weights says what is wrong with it
    if {"classes", "model"} <= about.keys():
        place, classes = str(named.options["weights"]), tuple(json.loads(about["classes"]))
        return Start(place, classes, Named.model_validate(json.loads(about["model"])), load_file(file))
    if not any(name.startswith(STUDENT) for name in names):
        return None
    if steps.is_complete(file.parent):
        steps.refuse_damaged(file.parent)
    state = {name.removeprefix(STUDENT): one for name, one in load_file(file).items() if name.startswith(STUDENT)}
    if not is_run(file.parent.parent):
        return Start(str(file), None, None, state)
    run = Run(file.parent.parent)
    return Start(str(file), run.class_set.classes, run.config.model, state)
