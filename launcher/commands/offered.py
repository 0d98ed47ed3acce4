"""Commands of a group that installed packages offer: one for each name of a registry, imported when it is asked for."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import typer.core
import typer.main

from launcher.errors import ConfigError
from wsss.registry import Registry

Option = tuple[Any, Any]  # annotation, and default; ... = it must be given


class GroupWithOffers(typer.core.TyperGroup):
    """A group whose own commands are joined by those of packages. A package that cannot be imported, or whose name
    another one has, is a command that says so; the others are not touched.

    Attributes:
        registry: of the packages' things.
    """

    registry: ClassVar[Registry]

    @staticmethod
    def command_of(name: str, thing: Any, /) -> Callable[..., None]:
        """A function for typer, with its options. Raises ValueError for a thing that has none."""
        raise NotImplementedError

    def list_commands(self, ctx: Any) -> list[str]:
        return list(dict.fromkeys([*super().list_commands(ctx), *self.registry]))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        own = super().get_command(ctx, cmd_name)
        if cmd_name not in self.registry.offered:
            return own
        if own is not None:
            self.registry.ours.setdefault(cmd_name, own)  # reading the name now says whose it is besides
        try:
            return compile_command(cmd_name, self.command_of(cmd_name, self.registry[cmd_name]))
        except Exception as error:  # typer has many types for options that it cannot read
            said = str(error) if isinstance(error, ValueError) else f"{self.registry.group}: '{cmd_name}': {error!r}"
            return compile_command(cmd_name, refusal(said), ignore_unknown_options=True, allow_extra_args=True)


def compile_command(name: str, function: Callable[..., None], **context: bool) -> Any:
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    single.command(name, context_settings=context)(function)
    return typer.main.get_command(single)


def refusal(said: str) -> Callable[..., None]:
    """A command that cannot run, and says why."""

    def refuse() -> None:
        raise ConfigError(said)

    refuse.__doc__ = f"Not usable: {said}"
    return refuse


def with_options(
    function: Callable[..., None], options: Mapping[str, Option], about: str | None
) -> Callable[..., None]:
    """A function of **keywords with a signature that typer reads: these options, and its help."""
    function.__annotations__ = {name: annotation for name, (annotation, _) in options.items()}
    function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if default is ... else default,
                annotation=annotation,
            )
            for name, (annotation, default) in options.items()
        ]
    )
    function.__doc__ = about
    return function
