"""Parameters that a step does not use: reported at the first step, even with a single process."""

from torch import Tensor, nn

from launcher.errors import RunError
from wsss.models.dry_run import find_unread

SHOWN = 5  # names in a message


def refuse_unread(method: nn.Module, loss: Tensor) -> None:
    """Refuse a method whose loss leaves out trainable parameters. Otherwise DDP would fail in its second step without
    naming them, ZeRO would lack their state, and a single process would silently leave them untrained (D-94).

    Args:
        method: not wrapped for data parallelism.
        loss: of its forward pass, with its graph; no gradient is computed.

    Raises:
        RunError: on every rank, with the names.
    """
    names = find_unread(method, [loss])
    if names:
        shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
        raise RunError(
            f"the loss of method '{type(method).__name__}' does not depend on {len(names)} trainable parameters: "
            f"{shown}; choose a model without them or a method that trains them; a method of your own adds 0 times "
            "their sum to its loss in steps that leave them out"
        )


def name_origins(method: nn.Module) -> list[str]:
    """A line for each of its networks that has parts loaded from another network of ours."""
    parts = method.named_modules()
    return [f"{name or 'network'} {part.origin}" for name, part in parts if getattr(part, "origin", "")]


def name_unread(method: nn.Module) -> str:
    """A line about the parameters of its networks that no output depends on, which are frozen; '' if there are none."""
    names = [f"{name}.{one}" for name, part in method.named_modules() for one in getattr(part, "unread", ())]
    return f"not trained, since no output of the network depends on them: {', '.join(names)}" if names else ""
