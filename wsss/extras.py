"""Packages that only some work needs: what is said where one is not installed."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec


def is_installed(package: str) -> bool:
    """Whether a package can be imported. A folder of its name, such as one of event files, is none."""
    try:
        found = find_spec(package)
    except ValueError:  # a stand-in that says nothing of where it lies
        return False
    return found is not None and found.origin is not None


class MissingPackage(ImportError):
    """A package of an extra is not installed. The message says which extra brings it, and what does without."""


@contextmanager
def needs(extra: str, instead: str = "") -> Iterator[None]:
    """Around the imports of an extra's packages.

    Args:
        instead: what else the user may do.

    Raises:
        MissingPackage: one of them is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingPackage(
            f"this needs the package '{error.name}', which is not installed: pip install 'wsss[{extra}]'{instead}"
        ) from error
