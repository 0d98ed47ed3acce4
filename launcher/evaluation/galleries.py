"""Galleries: a few fixed images with their maps next to them, while training and on the report."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from launcher.evaluation.pictures import draw_class_outlines, draw_outline, encode_data_uri, lay_out_gallery
from launcher.evaluation.sources import find_sources
from launcher.run.folder import Run
from shards.folder import ShardFolder
from shards.schema import ClassSet

GALLERY = "gallery.jpg"
TRUTH = "image, truth"  # heading of the first column
MOST_PROBABLE = 3  # classes that a title names

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
    shards = ShardFolder(config.data.val)
    rows = []
    for number in sorted(choose_gallery(shards, config.evaluate.gallery)):
        predictions = {one.name: one.predict(shards, number, config.evaluate.threshold) for one in sources}
        probs = next((one.probs for one in predictions.values() if one.probs is not None), None)
        row = start_row(shards, number, name_probable(shards.index.as_class_set(), probs))
        row[1].update({name: one.draw_on(shards.image(number)) for name, one in predictions.items()})
        rows.append(row)
    return lay_out_gallery(rows)


def start_row(shards: ShardFolder, number: int, seen: str = "") -> Row:
    """The row of one image: so far the image, with the outline of its truth where there are masks, under its key, the
    classes of its label and what the network sees."""
    index = shards.index
    names = [name for name, is_there in zip(index.classes, shards.image_label_NK[number], strict=True) if is_there]
    title = f"{shards.keys[number]}: {', '.join(names) or 'none'}{f'  {seen}' if seen else ''}"
    if index.supervision == "label":
        return title, {"image": shards.image(number)}
    draw = draw_outline if len(index.classes) == 1 else draw_class_outlines
    return title, {TRUTH: draw(shards.image(number), shards.mask(number))}


def name_probable(class_set: ClassSet, probs: Sequence[float] | None) -> str:
    """The most probable classes with their probabilities; "" where there are none."""
    if probs is None:
        return ""
    first = sorted(zip(probs, class_set.classes, strict=True), reverse=True)[:MOST_PROBABLE]
    if class_set.num_fg_classes == 1:
        return f"p={first[0][0]:.2f}"
    return "p: " + ", ".join(f"{name} {prob:.2f}" for prob, name in first)


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
