"""The science: tensors in, tensors out. Knows no file, no process, no tracker; `wsss.load` is the launcher's."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`wsss.load(path).predict(image)`: looked up when it is asked for, since nothing below may import the launcher."""
    if name == "load":
        from launcher.predict.predictor import load

        return load
    raise AttributeError(f"module 'wsss' has no attribute '{name}'")
