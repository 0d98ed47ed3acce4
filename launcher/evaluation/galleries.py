"""Galleries: a few fixed images with their maps next to them, while training and on the report."""

import html
from pathlib import Path

import numpy as np
from PIL import Image

from launcher.evaluation.pictures import data_uri, gallery, heat, outlined, painted
from launcher.evaluation.protocol import sources_of
from launcher.jobs.label_maps import read_label_map, segment_sources_of
from launcher.jobs.scores import at_size, read_scores_of
from launcher.run.folder import Run
from shards.folder import ShardFolder

GALLERY = "gallery.jpg"


def galleries(runs: list[Path]) -> list[tuple[str, str]]:
    """(run, picture) of the fixed validation images: truth, every kind of CAM and every mask; and what the last
    evaluation in training showed."""
    pictures = []
    for run in runs:
        config = Run(run).config
        if config.data.val is None or config.evaluate.gallery == 0:
            continue
        shards = ShardFolder(config.data.val, "pixel")
        chosen = sorted(gallery_numbers(shards, config.evaluate.gallery))
        rows = {}
        for number in chosen:
            rows[number] = {"image, truth": outlined(shards.image(number), shards.mask(number))}
        for source, (folder, kind) in sources_of(run, "val").items():
            for number in chosen:
                scores = read_scores_of(shards, folder, number, kind)
                image_HW3 = shards.image(number)
                if scores.mask is not None:
                    rows[number][source] = outlined(image_HW3, scores.mask, (255, 0, 255))
                else:
                    rows[number][source] = heat(
                        image_HW3, at_size(scores.maps[kind], image_HW3.shape[:2]).max(0, initial=0)
                    )
        for source, (folder, extension) in segment_sources_of(run, "val").items():
            for number in chosen:
                rows[number][source] = painted(shards.image(number), read_label_map(shards, folder, number, extension))
        if any(len(columns) > 1 for columns in rows.values()):
            sheet = gallery([(f"{shards.keys[number]}", columns) for number, columns in rows.items()])
            pictures.append((html.escape(config.name), data_uri(sheet)))
        if (run / GALLERY).is_file():
            with Image.open(run / GALLERY) as sheet:
                pictures.append((html.escape(f"{config.name}, last evaluation while training"), data_uri(sheet)))
    return pictures


def gallery_numbers(shards: ShardFolder, count: int) -> set[int]:
    """A fixed choice of samples, half of them with a class and half without, spread over the groups."""
    shown = [n for n in range(len(shards)) if shards.image_label_NK[n].any()]
    clear = [n for n in range(len(shards)) if not shards.image_label_NK[n].any()]
    chosen: set[int] = set()
    for pool, wanted in ((shown, (count + 1) // 2), (clear, count // 2)):
        ordered = sorted(pool, key=lambda n: shards.keys[n])
        places = np.linspace(0, len(ordered) - 1, min(wanted, len(ordered))).round().astype(int)
        chosen.update(ordered[place] for place in places)
    return chosen


def keep_picture(picture: Image.Image, run: Path) -> None:
    """RUN/gallery.jpg, which the report shows: what no mask shard holds, such as regions and pseudo labels."""
    run.mkdir(parents=True, exist_ok=True)
    picture.save(run / GALLERY, quality=88)
