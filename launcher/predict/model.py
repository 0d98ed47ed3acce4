"""A trained network that predicts: of a run, or of a file that `wsss export` wrote."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from launcher.config.sections import Config
from launcher.errors import ConfigError, RunError
from launcher.processes.accelerator import uses_cpu
from launcher.run import steps
from launcher.run.build import build_method, build_network, load_trained
from launcher.run.export import Affine, read_exported, thresholds_of, training_size
from launcher.run.folder import Run
from shards.schema import ClassSet
from shards.tars import sha256_of
from wsss.methods.base import Method
from wsss.models.base import Network, Outputs


@dataclass(frozen=True, kw_only=True)
class Model:
    """A network in eval mode with all that predicting needs.

    Attributes:
        place: the run's folder or the exported file.
        weights: sha256 of the file of its weights.
        evaluation: see launcher.run.export.thresholds_of.
        train_size: see launcher.run.export.training_size.
    """

    place: Path
    checkpoint: str
    weights: str
    config: Config
    class_set: ClassSet
    method: Method
    evaluation: dict[str, Any] | None
    train_size: tuple[int, int] | None

    @property
    def device(self) -> torch.device:
        return next(self.method.parameters()).device


def load_model(place: Path, device: str = "auto") -> Model:
    """Open a run or an exported file.

    Args:
        device: `auto`, `cpu` or `cuda`.

    Raises:
        RunError: neither is there, or no complete checkpoint.
        ConfigError: there is no such device here.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--device {device}: wanted auto, cpu or cuda")
    model = read_file(place) if place.is_file() else read_run(place)
    wanted = model.config.launch.model_copy(update={"device": device})
    on_cpu = uses_cpu(model.config.model_copy(update={"launch": wanted}))
    model.method.to("cpu" if on_cpu else "cuda").eval()
    return model


def read_run(place: Path) -> Model:
    run, method, checkpoint = load_trained(Run(place))
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
    found = read_exported(place)
    config = found.config
    if found.maps or config.teacher is not None or config.partner is not None:
        method: Method = Reader(build_network(config.model, found.class_set), found.maps)
    else:
        method = build_method(config, found.class_set)
    try:
        method.student.load_state_dict(found.weights)
    except RuntimeError as error:
        raise RunError(f"{place}: its weights do not fit the network that it names: {error}") from error
    return Model(
        place=place,
        checkpoint=found.checkpoint,
        weights=sha256_of(place),
        config=config,
        class_set=found.class_set,
        method=method,
        evaluation=found.evaluation,
        train_size=found.train_size,
    )


class Reader(Method):
    """A student without the network that it learnt from: all that predicting needs of their method.

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
