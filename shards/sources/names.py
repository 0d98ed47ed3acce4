"""Which file a name means, for all sources, and the keys made from names.

Tables, lists and annotations name files by a path, with or without its ending, perhaps written on another system. Whole
paths are compared in one form (letters composed, `/` between folders, the image ending in lower case); only an image
ending is removed. A name that could mean two files is refused, and the error names both.
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
    """The name without its image ending; 'clip_12.5s' is unchanged, since .5s is none."""
    stem, dot, ending = name.rpartition(".")
    return stem if stem and not stem.endswith("/") and (dot + ending).lower() in IMAGE_ENDINGS else name


def last_of(path: str) -> str:
    return path.rpartition("/")[2]


class Names(Generic[File]):
    """The files of one place, found by names in tables.

    Args:
        files: {path below the place: file}.
        anywhere: a name may also be the end of a path if only one file has it.
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
        """The path of the file that a name means; None if there is none.

        Raises:
            DataError: the name may mean two files.
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
    """Raise DataError if two rows (name, file) lead to the same file."""
    seen: dict[Hashable, str] = {}
    for name, file in rows:
        if file in seen:
            raise DataError(
                f"{where}: '{seen[file]}' and '{name}' both lead to the {what} {file}; give each row its own file"
            )
        seen[file] = name


def key_of(name: str) -> str:
    """The key of a file: its path without its image ending, with '_' for all but letters, digits, '_' and '-'."""
    return re.sub(r"[^A-Za-z0-9_\-]", "_", without_ending(plain(name)))


def keys_of(names: Sequence[str], where: str) -> list[str]:
    """A key for each file. Names that would get the same key because of letters beyond ASCII get a digest at the end.

    Raises:
        DataError: two files would have the same key; names both.
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
