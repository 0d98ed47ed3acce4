"""A trained network for prediction: from a run, or from a file that `wsss export` wrote."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from launcher.config.whole import Config
from launcher.errors import ConfigError
from launcher.predict.alone import read_safetensors
from launcher.predict.facts import thresholds_of, training_size
from launcher.predict.graph import SUFFIXES, read_graph
from launcher.processes.accelerator import uses_cpu
from launcher.run import steps
from launcher.run.build import load_trained
from launcher.run.folder import Run, is_run
from shards.schema import ClassSet
from shards.tars import sha256_of
from wsss.methods.base import Method


@dataclass(frozen=True, kw_only=True)
class Model:
    """A network in eval mode with all that prediction needs.

    Attributes:
        place: the run's folder or the exported file.
        weights: sha256 of the file of its weights.
        evaluation: see launcher.predict.facts.thresholds_of.
        train_size: see launcher.predict.facts.training_size.
        chosen_kind: kind of map chosen at export.
        has_gradients: whether it can give maps that need gradients.
    """

    place: Path
    checkpoint: str
    weights: str
    config: Config
    class_set: ClassSet
    method: Method
    evaluation: dict[str, Any] | None
    train_size: tuple[int, int] | None
    chosen_kind: str | None = None
    has_gradients: bool = True

    @property
    def device(self) -> torch.device:
        return self.method.student.mean.device


def load_model(place: Path, device: str = "auto", checkpoint: Path | None = None) -> Model:
    """Open a run, an exported file, or a folder of `wsss export --hub`.

    Args:
        device: `auto`, `cpu` or `cuda`.
        checkpoint: of a run; None = its newest.

    Raises:
        RunError: there is no model, or no complete checkpoint.
        ConfigError: there is no such device here, or the file does not run on it.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--device {device}: wanted auto, cpu or cuda")
    file = place if place.is_file() or is_run(place) else exported_in(place) or place
    model = read_file(file) if file.is_file() else read_run(place, checkpoint)
    if file.suffix == SUFFIXES["onnx"]:
        if device == "cuda":
            raise ConfigError(f"--device cuda: {file} runs on the CPU; leave --device out, or take another format")
        device = "cpu"
    wanted = model.config.launch.model_copy(update={"device": device})
    on_cpu = uses_cpu(model.config.model_copy(update={"launch": wanted}))
    model.method.to("cpu" if on_cpu else "cuda").eval()
    return model


def read_run(place: Path, checkpoint: Path | None) -> Model:
    run, method, checkpoint = load_trained(Run(place), checkpoint)
    return Model(
        place=place,
        checkpoint=checkpoint.name,
        weights=sha256_of(checkpoint / steps.MODEL),
        config=run.config,
        class_set=run.class_set,
        method=method,
        evaluation=thresholds_of(place),
        train_size=training_size(run.config),
    )


def read_file(place: Path) -> Model:
    is_graph = place.suffix in SUFFIXES.values()
    facts, method = (read_graph if is_graph else read_safetensors)(place)
    return Model(
        place=place,
        checkpoint=facts.checkpoint,
        weights=sha256_of(place),
        config=facts.config,
        class_set=facts.class_set,
        method=method,
        evaluation=facts.evaluation,
        train_size=facts.train_size,
        chosen_kind=facts.chosen_kind,
        has_gradients=not is_graph,
    )


def exported_in(folder: Path) -> Path | None:
    """The model in a folder of `wsss export --hub`; None if it is not such a folder."""
    found = [folder / f"model{suffix}" for suffix in (".safetensors", *SUFFIXES.values())]
    return next((path for path in found if path.is_file()), None)
