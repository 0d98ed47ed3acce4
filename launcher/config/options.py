"""Things that a config chooses by name; their options are the keyword-only arguments of their functions.

So a new option is a change in one file, that of its function.
"""

import difflib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model, model_validator

SETS = ("layers", "scales", "cam_scales", "par_dilations")  # lists of numbers that must not repeat, like lists of names


LARGEST = 65_536  # number of a network: widths, depths and sizes are a tenth of it (D-180)


class Section(BaseModel):
    """A part of a config. A list that names things must name each once: a second time would silently count it twice or
    make it again."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _each_entry_once(self) -> "Section":
        for name, field in type(self).model_fields.items():
            kinds = (field.annotation, *get_args(field.annotation))
            if not any(get_origin(kind) is tuple and get_args(kind)[-1] is ... for kind in kinds):
                continue
            named = str | int | float if name in SETS else str
            entries = [entry for entry in getattr(self, name) or () if isinstance(entry, named)]
            if twice := [entry for number, entry in enumerate(entries) if entry in entries[:number]]:
                raise ValueError(f"{name} names {twice[0]!r} twice; leave one out")
        return self


class Named(BaseModel):
    """`{name: ..., option: ...}`: something chosen by name, with the options of its function."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


def check_named(place: str, named: Named, table: Mapping[str, Callable]) -> None:
    """Raise ValueError unless the name is in the table and the options fit its function's keyword-only arguments."""
    if named.name not in table:
        choice = f"choose one of {', '.join(sorted(table))}" if table else "no installed package offers any"
        raise ValueError(f"{place}.name: there is no '{named.name}'; {choice}")
    allowed = options_model(table[named.name])
    try:
        allowed.model_validate_json(json.dumps(named.options))
    except ValidationError as error:
        raise ValueError(explain_problem(error.errors()[0], allowed, (place,))) from error


@contextmanager
def naming_place(place: str) -> Iterator[None]:
    """Add the place in the config to a ValueError of `wsss`."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def refuse_huge(place: str, value: Any) -> None:
    """Raise ValueError for a number, also inside lists and mappings, that is too large for any layer."""
    if isinstance(value, Mapping):
        for name, inside in value.items():
            refuse_huge(f"{place}.{name}", inside)
    elif isinstance(value, list | tuple):
        for inside in value:
            refuse_huge(place, inside)
    elif isinstance(value, int | float) and not abs(value) <= LARGEST:
        raise ValueError(f"{place} is {value}; wanted {LARGEST:,} or less")


@cache
def options_model(function: Callable) -> type[BaseModel]:
    """A strict model with one field per keyword-only argument of a function or constructor.

    A constructor that takes **options passes them to its base class, so it has the arguments of that, too.
    """
    fields: dict[str, Any] = {}
    targets = [base.__init__ for base in inspect.getmro(function)] if inspect.isclass(function) else [function]  # type: ignore[misc]
    for target in targets:
        parameters = inspect.signature(target).parameters
        hints = get_type_hints(target)
        for name, parameter in parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY:
                default = ... if parameter.default is parameter.empty else parameter.default
                fields.setdefault(name, (hints[name], default))
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
    return create_model(function.__name__, __base__=Section, **fields)


def options_of(named: Named, table: Mapping[str, Callable]) -> dict[str, Any]:
    """The options in the types of the function (lists become tuples where it takes tuples)."""
    model = options_model(table[named.name]).model_validate_json(json.dumps(named.options))
    return {name: getattr(model, name) for name in type(model).model_fields}


def explain_problem(problem: Any, model: type[BaseModel], prefix: tuple[str, ...] = ()) -> str:
    """One validation problem in words: place, got, wanted."""
    location = [str(part) for part in problem["loc"]]
    place = ".".join([*prefix, *location])
    if problem["type"] == "extra_forbidden":
        known = sorted(list_fields(model, location[:-1]))
        near = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known) or 'none'}"
        where = ".".join([*prefix, *location[:-1]])
        return f"{where + ': ' if where else ''}unknown key '{location[-1]}'; {hint}"
    if problem["type"] == "missing":
        return f"{place}: is missing; it has no default"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{place + ': ' if place else ''}{message}"
    return f"{place}: got {problem['input']!r}; {message[0].lower()}{message[1:]}"


def list_fields(model: type[BaseModel], location: Sequence[str]) -> Iterator[str]:
    """The known keys at a place inside a config."""
    for part in location:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        if not (inspect.isclass(annotation) and issubclass(annotation, BaseModel)):
            return
        model = annotation
    yield from model.model_fields
