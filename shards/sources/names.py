"""Which file a name means: the one resolver of all sources, and the keys that names become.

Tables, lists and annotations name files by a path, with or without its ending, written on another system. Compared are
whole paths in one form (letters composed, `/` between folders, the image ending in lower case); an ending is stripped
only if it is an image ending. A name that could mean two files is refused with both.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Generic, TypeVar

from shards.schema import DataError

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png")
File = TypeVar("File")


def plain(name: str) -> str:
    """The form in which names are compared: 'a\\\\Cafe´.JPG' -> 'a/Café.jpg'."""
    path = unicodedata.normalize("NFC", name).replace("\\", "/")
    path = "/".join(part for part in path.split("/") if part not in ("", "."))
    bare = without_ending(path)
    return bare + path[len(bare) :].lower()


def without_ending(name: str) -> str:
    """The name without its image ending; 'clip_12.5s' keeps what only looks like one."""
    stem, dot, ending = name.rpartition(".")
    return stem if stem and not stem.endswith("/") and (dot + ending).lower() in IMAGE_ENDINGS else name


def last_of(path: str) -> str:
    return path.rpartition("/")[2]


class Names(Generic[File]):
    """The files of one place, by the names that others give them.

    Args:
        files: {path below the place: file}.
        anywhere: a name may also be the end of a path, as long as one file only has it.
    """

    def __init__(self, files: Mapping[str, File], place: str, *, anywhere: bool = False) -> None:
        self.files, self.place, self.anywhere = files, place, anywhere
        self.paths: dict[str, list[str]] = {}
        self.lasts: dict[str, list[str]] = {}
        for path in files:
            whole = plain(path)
            for name in {whole, without_ending(whole)}:
                self.paths.setdefault(name, []).append(path)
                self.lasts.setdefault(last_of(name), []).append(path)

    def find(self, name: str, where: str) -> str | None:
        """The path of the one file that a name means; None if there is none.

        Raises:
            DataError: it may mean two files.
        """
        if name in self.files:
            return name
        wanted = plain(name)
        known = self.paths.get(wanted, [])
        if not known and self.anywhere and wanted:
            known = [path for path in self.lasts.get(last_of(wanted), ()) if ends_with(plain(path), wanted)]
        found = [path for path in known if f"/{plain(path)}".endswith(f"/{wanted}")]
        if not found and without_ending(wanted) == wanted:
            found = known
        if len(found) > 1:
            raise DataError(
                f"{where}: '{name}' may be {found[0]} or {found[1]} in {self.place}: two images have this name; give "
                "the path with its ending, or rename one"
            )
        return found[0] if found else None


def ends_with(path: str, wanted: str) -> bool:
    return any(f"/{form}".endswith(f"/{wanted}") for form in (path, without_ending(path)))


def check_one_row_each(rows: Iterable[tuple[str, Hashable]], where: str, what: str) -> None:
    """Raise DataError if two rows (name, file) lead to one file."""
    seen: dict[Hashable, str] = {}
    for name, file in rows:
        if file in seen:
            raise DataError(
                f"{where}: '{seen[file]}' and '{name}' both lead to the {what} {file}; give each row its own file"
            )
        seen[file] = name


def key_of(name: str) -> str:
    """The key of a file: its path without its image ending, '_' for all but letters, digits, '_' and '-'."""
    return re.sub(r"[^A-Za-z0-9_\-]", "_", without_ending(plain(name)))


def keys_of(names: Sequence[str], where: str) -> list[str]:
    """A key for each file. Names whose letters beyond ASCII would make them one get a digest of the name behind.

    Raises:
        DataError: two files would have one key; names both.
    """
    keys = [key_of(name) for name in names]
    counts = Counter(keys)
    first: dict[str, str] = {}
    for number, name in enumerate(names):
        bare = without_ending(plain(name))
        if counts[keys[number]] > 1 and not bare.isascii():
            keys[number] += "_" + hashlib.sha256(bare.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        if keys[number] in first:
            raise DataError(
                f"{where}: '{first[keys[number]]}' and '{name}' would both have the key '{keys[number]}'; rename one"
            )
        first[keys[number]] = name
    return keys
