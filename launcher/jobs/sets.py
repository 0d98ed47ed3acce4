"""Sets of outputs of a run, which stand side by side: RUN/cams, RUN/cams@NAME, masks/KIND+NAME."""

from launcher.errors import ConfigError
from shards.places import find_places
from shards.remote import Place, name_of, parent_of


def find_sets(run: Place, what: str, split: str) -> list[Place]:
    """RUN/WHAT/SPLIT and RUN/WHAT@NAME/SPLIT, those that are there."""
    found = find_places(run, f"{what}*/{split}")
    return [place for place in found if name_of(parent_of(place)).partition("@")[0] == what]


def suffix_of(name: str | None, sign: str = "@") -> str:
    """@NAME of a further set; "" if there is no name. Raises ConfigError for a name that no folder can have, or that
    nobody would find again."""
    if name is None:
        return ""
    if not name.strip() or set(name) & set("/\\?#*[]"):
        raise ConfigError(f"the set '{name}': wanted a name without / \\ ? # * [ ], for it names a folder")
    return f"{sign}{name}"
