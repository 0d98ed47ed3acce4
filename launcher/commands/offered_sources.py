"""`wsss shards NAME` for the sources that installed packages offer (entry points of wsss.sources)."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from launcher.commands.arguments import LackClasses, Masks, Out, Shards, SplitName, Workers
from launcher.commands.offered import GroupWithOffers, Option, with_options
from launcher.files import require_here
from launcher.jobs.write_shards import write
from wsss.registry import Registry, not_callable

HANDED_ON = {"split", "masks"}  # what each command has and hands to its source
OF_ALL: dict[str, Option] = {
    "out": (Out, ...),
    "split": (SplitName, ...),
    "masks": (Masks, False),
    "may_lack_classes": (LackClasses, False),
    "shards": (Shards, 32),
    "workers": (Workers, None),
}


def source_command(name: str, read: Callable[..., Any]) -> Callable[..., None]:
    """A command that writes what `read` gives.

    Args:
        read: (*, split: str, masks: bool, **options) -> shards.schema.Source. Its other keyword-only arguments are the
            options of the command, its docstring the help.

    Raises:
        ValueError: it does not take split and masks, or has an option that all such commands have.
    """
    parameters = inspect.signature(read).parameters
    options = {key: one.default for key, one in parameters.items() if key not in HANDED_ON}
    if not set(parameters) >= HANDED_ON or set(options) & set(OF_ALL):
        raise ValueError(
            f"wsss.sources: '{name}' takes {', '.join(parameters) or 'nothing'}; wanted {' and '.join(HANDED_ON)}, and "
            f"options with other names than {', '.join(OF_ALL)}"
        )
    hints = get_type_hints(read, include_extras=True)

    def command(**given: Any) -> None:
        split, masks = given["split"], given["masks"]
        source = read(split=split, masks=masks, **{key: given[key] for key in options})
        write(source, given["out"], split, masks, given["shards"], given["workers"], given["may_lack_classes"])

    wanted = {
        key: (as_option(hints[key]), ... if default is inspect.Parameter.empty else default)
        for key, default in options.items()
    }
    return with_options(command, {**wanted, **OF_ALL}, read.__doc__)


def as_option(hint: Any) -> Any:
    """A type as an option's: typer takes what has no default for an argument."""
    if get_origin(hint) is Annotated:
        return hint
    here = require_here if Path in (hint, *get_args(hint)) else None
    return Annotated[hint, typer.Option(callback=here)]


class SourceGroup(GroupWithOffers):
    registry = Registry("wsss.sources", {}, not_callable)  # ours are commands, whose names are known to their group
    command_of = staticmethod(source_command)
