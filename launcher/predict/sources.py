"""SOURCE -> the images and clips that it means, each with the key that names its outputs."""

import difflib
import glob
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from launcher.errors import RunError
from shards.files import read_regular
from shards.image_bytes import decode_image, header_of
from shards.pixels import upright
from shards.remote import is_url
from shards.schema import DataError
from shards.sources.names import keys_of
from shards.sources.text import names_of, read_bytes

OTHER_PICTURES = (".gif", ".heic", ".heif", ".avif", ".jp2", ".jfif")
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
CLIPS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
STDIN = "-"


class Input(NamedTuple):
    """A file to predict; `name` is its path below the folder that contains all inputs of a command."""

    key: str
    name: str
    path: Path

    @property
    def is_clip(self) -> bool:
        return self.path.suffix.lower() in CLIPS


class Inputs(NamedTuple):
    """All inputs of a command, in order, and the folder that contains them."""

    below: Path
    images: list[Input]
    clips: list[Input]


def find_inputs(sources: Sequence[str], out: Path) -> Inputs:
    """The images and clips of all sources, each once.

    Args:
        sources: files, folders (searched recursively), globs, .txt lists of these, and `-`, a list on stdin.
        out: the folder of the outputs, which is not searched.

    Raises:
        RunError: a source that does not exist, holds nothing, or is neither image nor clip.
        DataError: two files with the same key, or a list that is not text.
    """
    found: dict[Path, None] = {}
    bases: list[Path] = []
    for source in expand(sources):
        base, files = files_of(source, out)
        bases.append(base)
        found.update(dict.fromkeys(files))
    below = Path(os.path.commonpath([base.absolute() for base in bases])) if bases else Path()
    names = [os.path.relpath(path.absolute(), below) for path in found]
    stems = [os.path.splitext(name)[0] for name in names]
    count = Counter(stems)  # a.jpg and a.mp4 in one folder
    bare = [stem if count[stem] == 1 else name.replace(".", "_") for stem, name in zip(stems, names, strict=True)]
    keys = keys_of(bare, str(below))
    inputs = [Input(key, name, path) for key, name, path in zip(keys, names, found, strict=True)]
    return Inputs(below, [i for i in inputs if not i.is_clip], [i for i in inputs if i.is_clip])


def expand(sources: Iterable[str]) -> Iterator[str]:
    """Sources, with lists replaced by their entries; a path in a .txt may be relative to the list."""
    for source in sources:
        path = Path(source)
        if source == STDIN:
            lines = [line.strip() for line in sys.stdin if line.strip()]
            if not lines:
                raise RunError("-: stdin lists nothing; wanted a path of an image, clip or folder on each line")
            yield from lines
        elif path.suffix.lower() == ".txt" and path.is_file():
            for name in names_of(read_bytes(path), str(path)):
                yield name if os.path.exists(name) else str(path.parent / name)
        else:
            yield source


def files_of(source: str, out: Path) -> tuple[Path, list[Path]]:
    """(folder to which the names of its files are relative, the files) of one source."""
    path = Path(source)
    if path.is_dir():
        files, others = walk(path, out)
        if not files:
            holds = ", ".join(f"{number} {ending or 'without ending'}" for ending, number in others.most_common(3))
            looked_for = " ".join((*IMAGES, *CLIPS))
            raise RunError(f"{source}: no images or clips (looked for {looked_for}); it holds {holds or 'nothing'}")
        if odd := ", ".join(f"{others[ending]} {ending}" for ending in OTHER_PICTURES if others[ending]):
            print(
                f"{source}: left out, since these formats are not read: {odd}; convert them (`magick IN OUT.png`)",
                flush=True,
            )
        return path, files
    if path.is_file():
        if path.suffix.lower() not in (*IMAGES, *CLIPS):
            known = " ".join((*IMAGES, *CLIPS))
            raise RunError(
                f"{source}: is neither image nor clip by its ending; wanted {known}, a folder or a .txt list"
            )
        return path.parent, [path]
    if glob.has_magic(source):
        fixed = Path(*path.parts[: first_magic(path)])
        files = [Path(name) for name in sorted(glob.glob(source, recursive=True)) if os.path.isfile(name)]
        files = [file for file in files if file.suffix.lower() in (*IMAGES, *CLIPS) and not is_below(file, out)]
        if not files:
            raise RunError(f"{source}: no image or clip matches this pattern; put it in quotes if the shell changes it")
        return fixed, files
    if is_url(source):
        raise RunError(f"{source}: is a URL; images and clips are read from files: fetch it first")
    if path.exists():
        raise RunError(f"{source}: is a pipe or a device; wanted a file, a folder, a glob in quotes, or - for a list")
    there = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, there, n=1)
    hint = f"near: {path.parent / near[0]}" if near else "give an image, a clip, a folder, a glob in quotes, or -"
    raise RunError(f"{source}: no such file or folder; {hint}")


def first_magic(path: Path) -> int:
    return next(number for number, part in enumerate(path.parts) if glob.has_magic(part))


def walk(folder: Path, out: Path) -> tuple[list[Path], Counter[str]]:
    """Images and clips below a folder, sorted by name, and the number of other files per ending. Hidden files and those
    below `out` are left out."""
    files: list[Path] = []
    others: Counter[str] = Counter()
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(n for n in folders if not n.startswith(".") and not is_below(Path(place, n), out))
        for name in sorted(names):
            path = Path(place, name)
            if name.startswith("."):
                continue
            if path.suffix.lower() in (*IMAGES, *CLIPS):
                files.append(path)
            else:
                others[path.suffix.lower()] += 1
    return files, others


def is_below(path: Path, folder: Path) -> bool:
    return path.absolute() == folder.absolute() or folder.absolute() in path.absolute().parents


def read_image(path: Path) -> np.ndarray:
    """An image file -> (H, W, 3) uint8 RGB, upright as viewers show it.

    Raises:
        DataError: it is gone, damaged, or in a mode that RGB cannot show.
    """
    try:
        data = read_regular(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    image_HW3 = decode_image(data, str(path))
    return upright(image_HW3, header_of(data, str(path))[1])
