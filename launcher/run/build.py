"""Config -> the objects of a run, and a run's folder -> its trained method."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from launcher.config.options import Named, options_model, options_of
from launcher.config.whole import Config
from launcher.errors import ConfigError, RunError, user_error_as
from launcher.run import steps
from launcher.run.checkpoint import load_method
from launcher.run.folder import Run
from launcher.run.start import Start, read_start, weights_options
from shards.schema import ClassSet
from wsss.methods import METHODS
from wsss.methods.base import Frozen, Method
from wsss.models import MODELS
from wsss.models.base import Network
from wsss.models.weights import load_parts, speaking_of
from wsss.registry import is_ours

TEXTS = ("texts", "other_texts")  # options of a model whose classifier is made of them


def build_network(named: Named, class_set: ClassSet, section: str = "model") -> Network:
    """The network of `model:` or `partner:`, the section of the config of which errors speak.

    Its initial weights may be a run, a checkpoint or an exported file. The backbone must fit; other parts are loaded
    only if they fit completely and the classes are the same. `Network.origin` says which parts were loaded.

    Raises:
        ConfigError: no such model, or weights that do not fit it.
        RunError: a run without a sound checkpoint.
    """
    with user_error_as(ConfigError), speaking_of({"model.": f"{section}."}):
        start = read_start(named)
        options = options_of(named if start is None else drop_weights(named), MODELS)
        with must_be_possible(named, section):
            network: Network = MODELS[named.name](class_set.num_fg_classes, **options)  # type: ignore[assignment]
        if start is not None:
            refuse_other_texts(named, start)
            same = start.classes == class_set.classes
            taken, new = load_parts(network, start.state, start.place, only_backbone=not same)
            why = "" if same else f" (its classes are {', '.join(start.classes) if start.classes else 'not known'})"
            network.origin = f"begins with {start.place}: {', '.join(taken)}"
            network.origin += f"; new: {', '.join(new)}{why}" if new else ""
    return network


@contextmanager
def must_be_possible(named: Named, section: str) -> Iterator[None]:
    """Turn errors of torch or Python about impossible sizes into a ValueError that names the options that are not at
    their defaults. Other errors pass unchanged: NotImplementedError (from tensors without values), and what must be a
    bug, since no option was given or the network is another package's, which reports bad options by ValueErrors
    itself."""
    try:
        yield
    except NotImplementedError:
        raise
    except (RuntimeError, ArithmeticError, LookupError) as error:
        fields = options_model(MODELS[named.name]).model_fields
        given = {name: value for name, value in named.options.items() if value != fields[name].default}
        if not given or not is_ours(MODELS[named.name]):
            raise
        said = ", ".join(f"{name}={value}" for name, value in given.items())
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{section}: '{named.name}' cannot be built with {said} ({reason})") from error


def refuse_other_texts(named: Named, start: Start) -> None:
    """Raise ValueError if a network has other texts for its classes than the one that its weights come from."""
    if start.model is None or start.model.name != named.name:
        return
    wanted, given = (options_of(drop_weights(one), MODELS) for one in (named, start.model))
    for option in TEXTS:
        if wanted.get(option) != given.get(option):
            raise ValueError(
                f"model.{option} is {list(wanted[option])}, but {start.place} was trained with {list(given[option])}: "
                f"use those, or set model.weights to the file that {start.place} began from"
            )


def build_method(config: Config, class_set: ClassSet, teacher: Run | None = None) -> Method:
    """The method of `method:` around a new network, with the teacher or partner that it needs.

    Args:
        teacher: the run at config.teacher, where it is open already.
    """
    student = build_network(config.model, class_set)
    collaborators: list[Frozen | Network] = []
    if METHODS[config.method.name].needs_teacher:
        assert config.teacher is not None  # Config refuses a method that needs a teacher without one
        collaborators.append(load_teacher(teacher or Run(config.teacher), class_set))
    if config.partner is not None:
        collaborators.append(build_network(config.partner, class_set, "partner"))
    with user_error_as(ConfigError):
        method = METHODS[config.method.name](student, *collaborators, **options_of(config.method, METHODS))
        if method.compares_pairs and config.data.pairs is None:
            raise ValueError(
                "method.time_weight compares neighbouring frames: wanted data.pairs, the distance of two frames"
            )
    return method


def load_teacher(teacher: Run, class_set: ClassSet) -> Frozen:
    """The student of a finished run, frozen.

    Raises:
        RunError: no checkpoint, or it was trained on other classes.
    """
    known = teacher.class_set.classes
    if known != class_set.classes:
        raise RunError(f"teacher {teacher} was trained on the classes {known}, but the data has {class_set.classes}")
    return Frozen(load_trained(teacher).method.student)


class Trained(NamedTuple):
    """A run's newest checkpoint as a method in eval mode."""

    run: Run
    method: Method
    checkpoint: Path


def load_trained(run: Run, checkpoint: Path | None = None) -> Trained:
    """Build a run's method and load a checkpoint; None = its newest.

    Raises:
        RunError: no complete checkpoint in the run, or one that was damaged after it was written.
    """
    checkpoint = checkpoint or run.checkpoint()
    steps.refuse_damaged(checkpoint)
    config = run.config
    parts: dict[str, Any] = {
        "model": drop_weights(config.model),
        "partner": config.partner and drop_weights(config.partner),
        "teacher": run.teacher,
    }
    method = build_method(config.model_copy(update=parts), run.class_set)
    load_method(method, checkpoint)
    return Trained(run, method.eval(), checkpoint)


def drop_weights(named: Named) -> Named:
    """The network's options without its initial weights, since a checkpoint has all weights."""
    return named.model_copy(update=dict.fromkeys(weights_options(named)))
