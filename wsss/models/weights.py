"""Initial weights of a network: from timm, from a file, or from another network of ours."""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn

from wsss.models.hub import explain_cache, without_waiting

BACKBONES = ("backbone", "encoders")  # parts of a network that know no classes; FrozenNet has several in one
HUB = "hf-hub:"  # before OWNER/NAME: what the network is stands there, so a network or its cache is needed


def name_at_timm(timm_name: str) -> str:
    """The architecture's name, without hub and owner before it and without the tag of the weights after it."""
    return timm_name.rpartition("/")[2].partition(".")[0]


@contextmanager
def speaking_of(options: Mapping[str, str]) -> Iterator[None]:
    """Rename options of the config in the text of a ValueError, for a second network whose options have other names.

    Args:
        options: {name in the error: name in the config}.
    """
    try:
        yield
    except ValueError as error:
        said = str(error)
        for inside, of_config in options.items():
            said = said.replace(inside, of_config)
        raise type(error)(said) from error


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
    fetched = weights == "timm" or timm_name.startswith(HUB)
    try:
        with without_waiting() if fetched else nullcontext():
            backbone = timm.create_model(timm_name, pretrained=weights == "timm", num_classes=0, **options)
    except Exception as error:  # an assertion, a network that does not answer: timm has no error of its own
        reason = f"{type(error).__name__} {error}".strip().splitlines()[0]
        if timm_name.startswith(HUB):
            raise ValueError(
                f"model.timm_name: {timm_name} cannot be built: {reason}. Its description is on the hub: fetch it once "
                f"where there is internet (`hf download OWNER/NAME`), {explain_cache()}, or use timm's own name for it"
            ) from error
        if weights == "timm" and not isinstance(error, AssertionError | TypeError):
            raise ValueError(f"model.weights: timm: {explain_download(timm_name)} ({reason})") from error
        given = ", ".join(f"{name}={value}" for name, value in options.items())
        raise ValueError(
            f"model.timm_name: timm cannot build '{timm_name}' with {given}: {reason}; choose {wanted}"
        ) from error
    if weights not in (None, "timm"):
        load_weights(backbone, weights, head=head)
    return backbone


def normalisation(
    backbone: Any, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and deviation of RGB in [0, 1]: those given, else what timm states for this network."""
    return mean or backbone.pretrained_cfg["mean"], std or backbone.pretrained_cfg["std"]


def is_fetched(timm_name: str) -> bool:
    """Whether the hub's cache on this machine holds the pretrained weights of a network of timm."""
    about = timm.get_pretrained_cfg(timm_name) if timm.is_model(timm_name) else None
    if about is None or not about.hf_hub_id:
        return False
    names = (about.hf_hub_filename, "model.safetensors", "pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(about.hf_hub_id, name), str) for name in names if name)


def explain_download(timm_name: str) -> str:
    """How to get weights of timm to a machine that cannot download them."""
    about = timm.get_pretrained_cfg(timm_name)
    if about is None or not about.hf_hub_id:
        return f"there are no pretrained weights of '{timm_name}' at a known place; give a file, model.weights=PATH"
    return (
        f"the pretrained weights of '{timm_name}' cannot be downloaded here. Fetch them where there is internet, with "
        f"`hf download {about.hf_hub_id} model.safetensors` or from https://huggingface.co/{about.hf_hub_id}; then "
        f"give the file, model.weights=PATH/model.safetensors, or {explain_cache()}"
    )


def load_weights(module: nn.Module, path: str | Path, *, head: Iterable[str]) -> None:
    """Load initial weights strictly: every name and shape must fit, but for the classifier, which is new.

    Args:
        path: a .safetensors file, or a torch file of tensors (unpickled with weights_only).
        head: first parts of the names that belong to the classifier that the weights were trained with.

    Raises:
        ValueError: file missing or unreadable, or names or shapes that do not fit; says which.
    """
    if not Path(path).is_file():
        raise ValueError(
            f"{path}: weights file is missing; give a path, a run, 'timm' (downloads) or null (random weights)"
        )
    state = read_state(Path(path))
    wanted, head = module.state_dict(), tuple(head)  # the norm in ConvNeXt's head stays where its classifier goes
    state = {name: one for name, one in state.items() if name in wanted or not name.split(".")[0].startswith(head)}
    missing = sorted(set(wanted) - set(state))
    unexpected = sorted(set(state) - set(wanted))
    reshaped = name_reshaped(state, wanted)
    if missing or unexpected or reshaped:
        raise ValueError(
            f"{path}: these weights belong to another network than {type(module).__name__}: "
            f"{len(missing)} names missing {missing[:3]}, {len(unexpected)} unknown {unexpected[:3]}, "
            f"{len(reshaped)} of another shape {reshaped[:3]}; choose the model that they were saved from"
        )
    module.load_state_dict({name: value.to(wanted[name].dtype) for name, value in state.items()})


def name_reshaped(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """The tensors that have another shape than wanted, in alphabetical order, each with both shapes."""
    return [
        f"{name} {tuple(state[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & state.keys())
        if state[name].shape != wanted[name].shape
    ]


def load_parts(
    network: nn.Module, state: Mapping[str, Tensor], where: str, *, only_backbone: bool
) -> tuple[list[str], list[str]]:
    """Load those parts of another network of ours, such as `backbone` and `head`, whose names and shapes all fit.

    Args:
        state: {name: tensor} of the other network.
        only_backbone: leave all other parts unchanged, for other classes.

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
        reshaped = name_reshaped(state, wanted)
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
    """{name: tensor} of a weights file; if it is nested in a dict, its entry 'state_dict' or 'model' is used. Raises
    ValueError for a file of anything else."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both libraries raise a different type for each way in which a file is none of its own
        raise ValueError(f"{path}: not a weights file that can be loaded safely ({error})") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(inside := state.get(wrapper), Mapping):
            state = inside
    if not isinstance(state, Mapping):
        raise ValueError(f"{path}: holds a {type(state).__name__}; wanted a dict of tensors by their names")
    for name, value in state.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            raise ValueError(f"{path}: holds {type(value).__name__} {name!r}; wanted a dict of tensors by their names")
    return dict(state)
