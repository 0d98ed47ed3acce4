"""Things by name: ours, and those that installed packages offer as entry points, which are imported when asked for."""

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

T = TypeVar("T")
GROUPS = ("wsss.methods", "wsss.models", "wsss.refiners", "wsss.cues", "wsss.sources", "wsss.metrics")
Offers = Mapping[str, tuple[EntryPoint, ...]]


class Registry(MutableMapping[str, T], Generic[T]):
    """{name: thing}. A name is there as soon as a package offers it; its module is imported when the thing is read.

    Args:
        group: of the entry points, such as wsss.methods.
        ours: what comes with this project.
        wrong_with: thing -> what is wrong with it in words, "" if nothing; asked of what packages offer.

    Raises:
        ValueError: at reading a name that two offer, or whose package cannot be imported or offers something else.
            Other names are not touched.
    """

    def __init__(self, group: str, ours: Mapping[str, T], wrong_with: Callable[[object], str]) -> None:
        self.group, self.ours, self.wrong_with = group, dict(ours), wrong_with

    @property
    def offered(self) -> Offers:
        """The entry points of the group by name; found anew when the places of packages have changed."""
        return find_offers(self.group, tuple(sys.path))

    def __getitem__(self, name: str) -> T:
        offers = self.offered.get(name, ())
        if name in self.ours and not offers:
            return self.ours[name]
        if not offers:
            raise KeyError(name)
        of_whom = [*(["wsss itself"] if name in self.ours else []), *map(describe, offers)]
        if len(of_whom) > 1:
            raise ValueError(
                f"{self.group}: '{name}' is offered by {' and by '.join(of_whom)}; remove one of these packages, or "
                "ask its author to choose another name"
            )
        try:
            thing = offers[0].load()
        except Exception as error:  # whatever a module of others raises when it is imported
            raise ValueError(
                f"{self.group}: '{name}' of {of_whom[0]} cannot be imported: {type(error).__name__}: {error}; repair "
                f"or remove that package (`python -c 'import {offers[0].module}'` shows where)"
            ) from error
        if wrong := self.wrong_with(thing):
            raise ValueError(f"{self.group}: '{name}' of {of_whom[0]} {wrong}")
        return thing

    def __contains__(self, name: object) -> bool:
        return name in self.ours or name in self.offered

    def __iter__(self) -> Iterator[str]:
        return iter({**self.ours, **self.offered})

    def __len__(self) -> int:
        return len({**self.ours, **self.offered})

    def __setitem__(self, name: str, thing: T) -> None:
        self.ours[name] = thing

    def __delitem__(self, name: str) -> None:
        del self.ours[name]


@lru_cache(maxsize=16)
def find_offers(group: str, path: tuple[str, ...]) -> Offers:
    """The entry points of a group by name. `path` is sys.path, for which they are found once."""
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for offer in sorted(entry_points(group=group), key=lambda offer: offer.dist.name if offer.dist else ""):
        found[offer.name] = (*found.get(offer.name, ()), offer)
    return found


def list_packages() -> dict[str, str]:
    """{name: version} of the packages that offer something for any registry of ours."""
    offers = [offer for group in GROUPS for same in find_offers(group, tuple(sys.path)).values() for offer in same]
    return {offer.dist.name: offer.dist.version for offer in offers if offer.dist is not None}


def is_ours(thing: object) -> bool:
    """Whether a function or class is this project's, and of no package that offers it."""
    return getattr(thing, "__module__", "").partition(".")[0] == __package__


def describe(offer: EntryPoint) -> str:
    """The package behind an entry point, and where in it the thing lies."""
    package = f"package '{offer.dist.name}' {offer.dist.version}" if offer.dist else "a package"
    return f"{package} ({offer.value})"


def not_a(base: type) -> Callable[[object], str]:
    """For registries of subclasses of a class."""

    def wrong_with(thing: object) -> str:
        is_one = inspect.isclass(thing) and issubclass(thing, base)
        return "" if is_one else f"is {thing!r}; wanted a subclass of {base.__name__}"

    return wrong_with


def not_callable(thing: object) -> str:
    """For registries of functions."""
    return "" if callable(thing) else f"is {thing!r}; wanted a function"
