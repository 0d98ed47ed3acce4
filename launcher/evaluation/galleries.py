"""Galleries: a few fixed images with their maps next to them, while training and on the report."""

from pathlib import Path

import numpy as np
from PIL import Image

from launcher.evaluation.pictures import draw_outline, encode_data_uri, lay_out_gallery
from launcher.evaluation.sources import find_sources
from launcher.run.folder import Run
from shards.folder import ShardFolder

GALLERY = "gallery.jpg"
TRUTH = "image, truth"  # heading of the first column

Row = tuple[str, dict[str, np.ndarray]]  # title, {column: (H, W, 3) uint8}


def draw_galleries(runs: list[Path]) -> list[tuple[str, str]]:
    """(title, picture as a data URI) of every run: its fixed validation images with the truth and all of its CAMs and
    masks, and what the last evaluation while training showed."""
    pictures = []
    for folder in runs:
        run = Run(folder)
        if sheet := draw_gallery(run):
            pictures.append((run.config.name, encode_data_uri(sheet)))
        if (folder / GALLERY).is_file():
            with Image.open(folder / GALLERY) as sheet:
                pictures.append((f"{run.config.name}, last evaluation while training", encode_data_uri(sheet)))
    return pictures


def draw_gallery(run: Run) -> Image.Image | None:
    """A row for each fixed validation image, a column for each source; None where there is nothing to show."""
    config, sources = run.config, find_sources(run.folder, "val")
    if config.data.val is None or config.evaluate.gallery == 0 or not sources:
        return None
    shards = ShardFolder(config.data.val, "pixel")
    rows = []
    for number in sorted(choose_gallery(shards, config.evaluate.gallery)):
        row = start_row(shards, number, shards.keys[number])
        for source in sources:
            prediction = source.predict(shards, number, config.evaluate.threshold)
            row[1][source.name] = prediction.draw_on(shards.image(number))
        rows.append(row)
    return lay_out_gallery(rows)


def start_row(shards: ShardFolder, number: int, title: str) -> Row:
    """The row of one image: so far the image with the outline of its truth."""
    return title, {TRUTH: draw_outline(shards.image(number), shards.mask(number))}


def choose_gallery(shards: ShardFolder, count: int) -> set[int]:
    """A fixed choice of samples, half of them with a class and half without, spread over the groups."""
    shown = [n for n in range(len(shards)) if shards.image_label_NK[n].any()]
    clear = [n for n in range(len(shards)) if not shards.image_label_NK[n].any()]
    chosen: set[int] = set()
    for candidates, wanted in ((shown, (count + 1) // 2), (clear, count // 2)):
        ordered = sorted(candidates, key=lambda n: shards.keys[n])
        places = np.linspace(0, len(ordered) - 1, min(wanted, len(ordered))).round().astype(int)
        chosen.update(ordered[place] for place in places)
    return chosen


def keep_gallery(picture: Image.Image, folder: Path) -> None:
    """RUN/gallery.jpg, which the report shows: what no mask shard holds, such as regions and pseudo labels."""
    folder.mkdir(parents=True, exist_ok=True)
    picture.save(folder / GALLERY, quality=88)
