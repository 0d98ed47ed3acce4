"""Config -> the objects of a run, and a run's folder -> its trained method."""

from collections.abc import Sequence
from pathlib import Path

from launcher.config.options import Named, options_of
from launcher.config.sections import Config
from launcher.errors import ConfigError, RunError, user_error_as
from launcher.run.checkpoint import load_method
from launcher.run.folder import load_about
from launcher.run.steps import newest_complete, refuse_damaged
from shards.schema import ClassSet
from wsss.methods import METHODS
from wsss.methods.base import Frozen, Method
from wsss.models import MODELS
from wsss.models.base import Network


def build_network(named: Named, num_classes: int) -> Network:
    """The network of `model:` or `partner:`.

    Raises:
        ConfigError: no such model, or weights that do not fit it.
    """
    with user_error_as(ConfigError):
        return MODELS[named.name](num_classes, **options_of(named, MODELS))  # type: ignore[return-value]


def build_method(config: Config, class_set: ClassSet) -> Method:
    """The method of `method:` around a new network, with the teacher or partner that it needs."""
    student = build_network(config.model, class_set.num_fg_classes)
    collaborators: list[Frozen | Network] = []
    if METHODS[config.method.name].needs_teacher:
        collaborators.append(load_teacher(config, class_set))
    if config.partner is not None:
        collaborators.append(build_network(config.partner, class_set.num_fg_classes))
    with user_error_as(ConfigError):
        return METHODS[config.method.name](student, *collaborators, **options_of(config.method, METHODS))


def load_teacher(config: Config, class_set: ClassSet) -> Frozen:
    """The network of the finished run named by `teacher:`, frozen.

    Raises:
        RunError: no such run, no checkpoint, or it was trained on other classes.
    """
    assert config.teacher is not None  # Config refuses a method that needs a teacher without one
    _, classes, method, _ = load_run(config.teacher)
    if classes.classes != class_set.classes:
        raise RunError(f"teacher {config.teacher} knows the classes {classes.classes}, the data {class_set.classes}")
    return Frozen(method.student)


def load_run(run: Path, overrides: Sequence[str] = ()) -> tuple[Config, ClassSet, Method, Path]:
    """Config, classes, trained method in eval mode, and checkpoint of a run's folder.

    Args:
        overrides: section.key=value, for what is read from a run after its training.

    Raises:
        RunError: no run there, or no complete checkpoint in it.
    """
    config, about = load_about(run, overrides)
    class_set = ClassSet(name=about["class_set"], classes=tuple(about["classes"]))
    checkpoint = newest_complete(run)
    refuse_damaged(checkpoint)
    parts = {"model": without_weights(config.model), "partner": config.partner and without_weights(config.partner)}
    method = build_method(config.model_copy(update=parts), class_set)
    load_method(method, checkpoint)
    return config, class_set, method.eval(), checkpoint


def without_weights(named: Named) -> Named:
    """The network without its initial weights: a checkpoint has them all."""
    return named.model_copy(update={"weights": None}) if "weights" in named.options else named
