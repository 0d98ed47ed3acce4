"""Where the images and masks of a table of labels are."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from shards.schema import DataError
from shards.sources.archives import list_folder
from shards.sources.names import IMAGE_ENDINGS, Names, last_of, plain, without_ending
from shards.sources.text import shown


class Folders:
    """The images and masks below `root`: its own files, and the folders that options or cells name."""

    def __init__(self, root: Path, image_folder: str, mask_folder: str, rows: Mapping[str, Any]) -> None:
        self.root, self.image_folder, self.mask_folder = root, plain(image_folder), plain(mask_folder)
        cells = [row.get(column) for row in rows.values() if isinstance(row, dict) for column in ("image", "mask")]
        paths = [plain(name) for name in (*rows, *cells, image_folder, mask_folder) if isinstance(name, str)]
        files = dict(files_below(root, {path.partition("/")[0] for path in paths}))
        self.names = Names(files, str(root))
        prefix = f"{self.mask_folder}/" if self.mask_folder else ""
        self.images_of_name: dict[str, set[str]] = {}
        for path in map(plain, files):
            if not (prefix and path.startswith(prefix)):
                self.images_of_name.setdefault(without_ending(last_of(path)), set()).add(without_ending(path))

    def image_of(self, key: str, fields: Mapping[str, Any], where: str) -> tuple[Path, str]:
        """(file, path below root) of a row's image."""
        cell = fields.get("image")
        if cell not in (None, ""):
            return self.named(cell, where, self.image_folder)
        path = self.names.find(f"{self.image_folder}/{key}".removeprefix("/"), where)
        if path is None:
            raise DataError(
                f"{where}: no image {self.root / self.image_folder / key} with ending {', '.join(IMAGE_ENDINGS)}; see "
                "--image-folder"
            )
        return self.names.files[path], path

    def named(self, cell: Any, where: str, folder: str = "") -> tuple[Path, str]:
        """(file, path below root) of a path in a cell, which is below root or else below this folder of root; a path
        that leaves `root` is not changed."""
        if not isinstance(cell, str):
            raise DataError(f"{where}: file is {shown(cell)}; wanted a path below {self.root}")
        inside = not cell.startswith("/") and ".." not in plain(cell).split("/")
        if inside and without_ending(plain(cell)) != plain(cell):
            for name in (cell, f"{folder}/{plain(cell)}") if folder else (cell,):
                if (path := self.names.find(name, where)) is not None:
                    return self.names.files[path], path
        file = self.root / cell
        try:
            if file.is_file():
                return file, plain(cell)
        except (OSError, ValueError) as error:
            raise DataError(f"{where}: {shown(cell)} is not a path ({error})") from error
        also = f" or {self.root / folder}" if inside and folder else ""
        raise DataError(
            f"{where}: {file}: file is missing; wanted a path below {self.root}{also}{self.near(cell, folder)}"
        )

    def near(self, cell: str, folder: str) -> str:
        """A hint at what a path that leads nowhere may mean, if it lacks its ending, has other capital letters or does
        not begin at the root; "" if there is none."""
        for name in (cell, f"{folder}/{cell}"):
            if (found := self.folded.get(plain(name).casefold())) is not None:
                return f"; did you mean {found}?"
        if folder or "/" in plain(cell) or not self.folders:
            return ""
        return f"; are they in one of its folders ({', '.join(self.folders[:3])})? See --image-folder"

    @cached_property
    def folded(self) -> dict[str, str]:
        """{path in lower case, with and without its ending: path} of all files."""
        whole = {plain(path).casefold(): path for path in self.names.files}
        return {without_ending(form): path for form, path in whole.items()} | whole

    @cached_property
    def folders(self) -> list[str]:
        """The folders of images directly below the root."""
        return sorted(
            entry.name
            for entry in self.root.iterdir()
            if entry.is_dir() and not entry.name.startswith(".") and entry.name != self.mask_folder
        )

    def mask_of(self, image: str, fields: Mapping[str, Any], where: str) -> tuple[Path | None, str]:
        """(file or None, its place or where it was looked for) for the mask of an image at this path below root."""
        if "mask" in fields:
            cell = fields["mask"]
            if cell in (None, ""):
                return None, "the empty cell of column 'mask'"
            return (file := self.named(cell, where)[0]), str(file)
        whole = without_ending(plain(image))
        below = whole.removeprefix(f"{self.image_folder}/") if self.image_folder else whole
        looked_for = [f"{self.mask_folder}/{name}.png".removeprefix("/") for name in dict.fromkeys((below, whole))]
        flat = f"{self.mask_folder}/{last_of(whole)}.png".removeprefix("/")
        for name in dict.fromkeys((*looked_for, flat)):
            path = self.names.find(name, where)
            if path is None or plain(path) == plain(image):
                continue
            others = sorted(self.images_of_name.get(last_of(whole), set()) - {whole, without_ending(flat)})
            if name not in looked_for and others:
                raise DataError(
                    f"{where}: {self.root / path} may be the mask of '{whole}' or of '{others[0]}': two frames lead to "
                    f"one mask; put it at {looked_for[0]}, or name masks in a column 'mask'"
                )
            return self.names.files[path], str(self.names.files[path])
        return None, str(self.root / looked_for[0])


def files_below(root: Path, tops: set[str]) -> Iterator[tuple[str, Path]]:
    """(path below root, path) of root's own images and of those in its folders `tops`."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    for entry in sorted(root.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir() and plain(entry.name) in tops:
            for path, blob in list_folder(entry).items():
                if path.lower().endswith(IMAGE_ENDINGS):
                    yield path, Path(blob.path)
        elif entry.name.lower().endswith(IMAGE_ENDINGS):
            yield entry.name, entry
