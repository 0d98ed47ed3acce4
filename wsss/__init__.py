"""The science: tensors in, tensors out. Knows no file, no process, no tracker."""

from importlib.metadata import entry_points
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Names that an installed package offers here as an entry point of `wsss.api`, such as `wsss.load`: looked up when
    they are asked for, since nothing in here may know who offers them."""
    for offered in entry_points(group="wsss.api", name=name):
        return offered.load()
    raise AttributeError(
        f"module 'wsss' has no attribute '{name}'; `wsss.load` is there once the project is installed (pip install -e "
        ".)"
    )


def __dir__() -> list[str]:
    """What is here, with the names that are offered."""
    return sorted({*globals(), *(offered.name for offered in entry_points(group="wsss.api"))})
