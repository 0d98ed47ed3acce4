"""Finds where NaN and infinity come from: checks every operation of a forward and backward pass as it runs."""

import sys
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TORCH = str(Path(torch.__file__).parent)
KINDS = {"NaN": torch.isnan, "infinity": torch.isinf}


class Watch(TorchDispatchMode):
    """Context that records the first operation that makes a NaN, and the first that makes an infinity, from finite
    numbers.

    An infinity may be intended, as in a mask before a softmax; a NaN hardly ever is. Use it inside
    `torch.autograd.set_detect_anomaly(True, check_nan=False)`: then the backward pass knows its forward lines.

    Attributes:
        first: {"NaN" or "infinity": what made it, where}.
    """

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.names = {id(module): name or type(module).__name__ for name, module in method.named_modules()}
        self.first: dict[str, str] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = {kind for kind in KINDS if kind not in self.first and any_is(kind, tree_leaves((args, kwargs)))}
        out = func(*args, **kwargs)
        for kind in KINDS:
            if kind not in self.first and kind not in before and any_is(kind, tree_leaves(out)):
                self.first[kind] = f"{func} {self.locate()}"
        return out

    def locate(self) -> str:
        node = torch._C._current_autograd_node()
        if node is not None:
            metadata: Any = node.metadata  # torch's stub takes the property for a method
            lines = [line for entry in metadata.get("traceback_", []) for line in entry.splitlines()]
            ours = [line.strip() for line in lines if line.strip().startswith("File") and TORCH not in line]
            return f"in the backward pass of {node.name()}, forward at {ours[-1] if ours else 'an unknown line'}"
        return f"in the forward pass {self.locate_forward(sys._getframe(2))}"

    def locate_forward(self, frame: FrameType | None) -> str:
        line, module = "", ""
        while frame is not None and not (line and module):
            if not line and not frame.f_code.co_filename.startswith(TORCH):
                line = f"at {frame.f_code.co_filename}:{frame.f_lineno}"
            module = module or self.names.get(id(frame.f_locals.get("self")), "")
            frame = frame.f_back
        return f"{line} in {module or 'the method'}"


def any_is(kind: str, values: Iterable[Any]) -> bool:
    return any(bool(KINDS[kind](value).any()) for value in values if torch.is_tensor(value) and is_real(value))


def is_real(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.numel() > 0


def find_nonfinite(tensors: Iterable[tuple[str, Any]]) -> list[str]:
    """Names of those that hold a NaN or an infinity."""
    return [name for name, value in tensors if torch.is_tensor(value) and is_real(value) and not value.isfinite().all()]
