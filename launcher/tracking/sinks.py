"""The sinks by name, as `tracking.to` names them."""

from collections.abc import Sequence
from importlib.util import find_spec

from launcher.errors import ConfigError, RunError
from launcher.tracking.mlflow_sink import MlflowSink
from launcher.tracking.sink import Sink
from launcher.tracking.tensorboard_sink import TensorboardSink

SINKS: dict[str, type[Sink]] = {"mlflow": MlflowSink, "tensorboard": TensorboardSink}


def make_sink(name: str) -> Sink:
    """Raises RunError if there is no sink of this name."""
    if name not in SINKS:
        raise RunError(f"tracking: no sink '{name}'; there are {', '.join(SINKS)}")
    return SINKS[name]()


def require_installed(names: Sequence[str]) -> None:
    """Raises ConfigError for a sink whose package is missing, before a run has done anything."""
    for name in names:
        package = SINKS[name].package
        if not is_installed(name):
            raise ConfigError(
                f"tracking.to: '{name}' needs the package '{package}', which is not installed: pip install {package}, "
                f"or take '{name}' out of tracking.to"
            )


def is_installed(name: str) -> bool:
    """Whether the package of a sink is there. A folder of its name, such as one of event files, is none."""
    found = find_spec(SINKS[name].package)
    return found is not None and found.origin is not None
