"""Sets of outputs of a run, which stand side by side: RUN/cams, RUN/cams@NAME, masks/KIND+NAME."""

import sys
from functools import cache

from launcher.errors import ConfigError
from launcher.jobs.output import JOB, read_made_of
from shards.places import find_places, list_names
from shards.remote import Place, name_of, parent_of


def find_sets(run: Place, what: str, split: str) -> list[Place]:
    """RUN/WHAT/SPLIT and RUN/WHAT@NAME/SPLIT, those that are there."""
    found = find_begun(run, f"{what}*/{split}")
    return [place for place in found if name_of(parent_of(place)).partition("@")[0] == what]


def find_begun(run: Place, pattern: str) -> list[Place]:
    """The output folders that match a pattern such as masks/*/val and that a job has started to fill. A folder whose
    job was killed before it wrote job.json is empty; it is reported and left out."""
    begun = []
    for place in find_places(run, pattern):
        if read_made_of(place) is not None or any(name.endswith(".tar") for name in list_names(place)):
            begun.append(place)
        else:
            tell_not_begun(place)
    return begun


@cache
def tell_not_begun(place: Place) -> None:
    """Once per process: a command looks at the same folders for its figures, its pictures and its page."""
    print(f"{place}: left out: its job never started (no {JOB}); run that command again", file=sys.stderr)


def suffix_of(name: str | None, sign: str = "@") -> str:
    """@NAME of a further set; "" if there is no name. Raises ConfigError for a name that no folder can have, or that
    nobody would find again."""
    if name is None:
        return ""
    if not name.strip() or set(name) & set("/\\?#*[]"):
        raise ConfigError(f"the set '{name}': wanted a name without / \\ ? # * [ ], since it names a folder")
    return f"{sign}{name}"
