"""The sinks by their names in `tracking.to`."""

from collections.abc import Sequence

from launcher.errors import ConfigError, RunError
from launcher.tracking.mlflow_sink import MlflowSink
from launcher.tracking.sink import Sink
from launcher.tracking.tensorboard_sink import TensorboardSink
from wsss.extras import is_installed

SINKS: dict[str, type[Sink]] = {"mlflow": MlflowSink, "tensorboard": TensorboardSink}


def make_sink(name: str) -> Sink:
    """Raises RunError if there is no sink of this name."""
    if name not in SINKS:
        raise RunError(f"tracking: there is no tracker '{name}'; choose one of {', '.join(SINKS)}")
    return SINKS[name]()


def require_installed(names: Sequence[str]) -> None:
    """Raise ConfigError for a sink whose package is missing, before a run has done anything."""
    for name in names:
        package = SINKS[name].package
        if not is_installed(package):
            raise ConfigError(
                f"tracking.to: '{name}' needs the package '{package}', which is not installed: "
                f"pip install 'wsss[{name}]', or take '{name}' out of tracking.to"
            )
