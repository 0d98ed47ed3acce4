"""Galleries: a few fixed images with their maps beside them, during training and in the report."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from launcher.evaluation.pictures import TILE_PX, as_tile, at_tile, draw_truth, encode_data_uri, lay_out_gallery
from launcher.evaluation.sources import find_sources
from launcher.run.folder import Run
from shards.folder import ShardFolder
from shards.schema import ClassSet

GALLERY = "gallery.jpg"
TRUTH = "image, truth"  # heading of the first column
MOST_PROBABLE = 3  # number of classes that a title names

Row = tuple[str, dict[str, np.ndarray]]  # title, {column: (H, W, 3) uint8}


@dataclass(frozen=True)
class Gallery:
    """A picture of fixed images in rows, and a description of it in words.

    Attributes:
        picture: as a data URI.
    """

    title: str
    picture: str
    columns: int
    alt: str


def draw_galleries(run: Run) -> list[Gallery]:
    """The fixed validation images of a run with the truth and all its CAMs and masks, and the gallery of its last
    validation during training."""
    name, found = run.config.name, []
    if rows := draw_rows(run):
        titles = "; ".join(title for title, _ in rows)
        alt = f"Fixed validation images of {name} in rows ({titles}), in columns: {'; '.join(rows[0][1])}"
        found.append(Gallery(name, encode_data_uri(lay_out_gallery(rows, run.class_set.classes)), len(rows[0][1]), alt))
    if (run.folder / GALLERY).is_file():
        with Image.open(run.folder / GALLERY) as sheet:
            alt = f"The same images of {name} in its last validation during training: truth and maps in columns"
            title = f"{name}, last validation during training"
            found.append(Gallery(title, encode_data_uri(sheet), max(sheet.width // TILE_PX, 1), alt))
    return found


def draw_rows(run: Run) -> list[Row]:
    """A row for each fixed validation image, a column for each source; [] if there is nothing to show."""
    config, sources = run.config, find_sources(run.folder, "val")
    if config.data.val is None or config.evaluate.gallery == 0 or not sources:
        return []
    shards = ShardFolder(config.data.val)
    rows = []
    for number in sorted(choose_gallery(shards, config.evaluate.gallery)):
        predictions = {one.name: one.predict(shards, number, config.evaluate.threshold) for one in sources}
        probs = next((one.probs for one in predictions.values() if one.probs is not None), None)
        row = start_row(shards, number, name_probable(shards.index.as_class_set(), probs))
        tile_HW3 = as_tile(shards.image(number))
        row[1].update({name: one.draw_on(tile_HW3) for name, one in predictions.items()})
        rows.append(row)
    return rows


def start_row(shards: ShardFolder, number: int, seen: str = "") -> Row:
    """The row of one image, so far only with the image and, if there are masks, the outline of its truth; the title is
    its key, the classes of its label and `seen`."""
    index = shards.index
    names = [name for name, is_there in zip(index.classes, shards.image_label_NK[number], strict=True) if is_there]
    title = f"{shards.keys[number]}: {', '.join(names) or 'none'}{f'  {seen}' if seen else ''}"
    tile_HW3 = as_tile(shards.image(number))
    if index.supervision == "label":
        return title, {"image": tile_HW3}
    mask_HW = at_tile(shards.mask(number), tile_HW3)
    return title, {TRUTH: draw_truth(tile_HW3, mask_HW, several=len(index.classes) > 1)}


def name_probable(class_set: ClassSet, probs: Sequence[float] | None) -> str:
    """The most probable classes with their probabilities; "" without probabilities."""
    if probs is None:
        return ""
    first = sorted(zip(probs, class_set.classes, strict=True), reverse=True)[:MOST_PROBABLE]
    if class_set.num_fg_classes == 1:
        return f"p={first[0][0]:.2f}"
    return "p: " + ", ".join(f"{name} {prob:.2f}" for prob, name in first)


def choose_gallery(shards: ShardFolder, count: int) -> set[int]:
    """A fixed choice of samples spread over the groups, half of them with a class and half without."""
    shown = [n for n in range(len(shards)) if shards.image_label_NK[n].any()]
    clear = [n for n in range(len(shards)) if not shards.image_label_NK[n].any()]
    chosen: set[int] = set()
    for candidates, wanted in ((shown, (count + 1) // 2), (clear, count // 2)):
        ordered = sorted(candidates, key=lambda n: shards.keys[n])
        places = np.linspace(0, len(ordered) - 1, min(wanted, len(ordered))).round().astype(int)
        chosen.update(ordered[place] for place in places)
    return chosen


def keep_gallery(picture: Image.Image, folder: Path) -> None:
    """Write RUN/gallery.jpg for the report: it shows what no mask shard holds, such as regions and pseudo labels."""
    folder.mkdir(parents=True, exist_ok=True)
    picture.save(folder / GALLERY, quality=88)
