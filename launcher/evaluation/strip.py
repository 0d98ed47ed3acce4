"""The strip at the top of a report: the worst, median and best images of a run, and false alarms, with truth, map and
mask."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from launcher.evaluation.formats import format_percent
from launcher.evaluation.headline import Headline
from launcher.evaluation.image_labels import PRESENT_PROB
from launcher.evaluation.measure import Prediction
from launcher.evaluation.per_image import read_ious, read_rows
from launcher.evaluation.pictures import as_tile, at_tile, draw_mask, draw_truth, encode_data_uri
from launcher.evaluation.sources import find_sources
from launcher.run.folder import Run
from shards.folder import ShardFolder
from shards.schema import IGNORE_INDEX

SHOWN = 6
RANKS = ("worst", "median", "best")
ALARMS = 2  # false alarms that are shown besides
STRIP_PX = 320


def draw_strip(headline: Headline) -> dict[str, Any]:
    """{"cards": pictures of SHOWN images, from worst to best, with false alarms after the worst, "order": what they are
    sorted by, "alarms": a sentence about false alarms, "lacking": why there are no pictures}."""
    run = Run(headline.run)
    source = next((one for one in find_sources(run.folder, "val") if one.name == headline.source), None)
    ranked, order = rank_images(headline)
    alarms, said_of_alarms = rank_alarms(headline)
    chosen = choose_ranks(ranked)
    worst = sum(rank == RANKS[0] for rank, _ in chosen)
    chosen[worst:worst] = [("alarm", alarm) for alarm in alarms[:ALARMS]]
    if source is None or not chosen or run.config.data.val is None:
        lacking = "its predictions are no longer here" if source is None else "no label of val names a class"
        return {"cards": [], "order": order, "alarms": "", "lacking": lacking}
    shards, cards = ShardFolder(run.config.data.val), []
    for rank, (key, said) in chosen:
        number = shards.number_of_key[key]
        threshold = headline.at.get("threshold", run.config.evaluate.threshold)
        prediction = source.predict(shards, number, threshold)
        cards.append({"rank": rank, "key": key, "said": said, "panels": draw_panels(shards, number, prediction)})
    return {"cards": cards, "order": order, "alarms": said_of_alarms, "lacking": ""}


def rank_images(headline: Headline) -> tuple[list[tuple[str, str]], str]:
    """[(key, caption)] of the images that show a class, from the worst to the best, and what they are sorted by: IoU
    or, without masks, the lowest probability of a class that the label names."""
    ious = read_ious(headline.run, headline.source, headline.choice)
    if ious:
        by_iou = sorted(ious, key=lambda key: (ious[key][1], key))
        return [(key, f"IoU {format_percent(ious[key][1])}") for key in by_iou], "IoU"
    classes, found = headline.evaluation["dataset"]["classes"], []
    for row in read_rows(headline.run, headline.source):
        named = [(float(row[f"p({name})"]), name) for name in classes if row.get(f"label({name})") == "1"]
        if named:
            found.append((*min(named), row["key"]))
    return [(key, f"p({name}) {prob:.2f}") for prob, name, key in sorted(found)], "probability"


def rank_alarms(headline: Headline) -> tuple[list[tuple[str, str]], str]:
    """[(key, caption)] of the images without a class on which one is predicted, the worst first, and a sentence about
    all of them. The worst has the largest predicted area or, without masks, the highest probability (at least
    PRESENT_PROB)."""
    classes, clear, found = headline.evaluation["dataset"]["classes"], 0, []
    for row in read_rows(headline.run, headline.source):
        area = row.get(f"false_area_{headline.choice}")
        if area:  # empty if the truth is not known
            is_clear, worst = float(row["truth_area"]) == 0, float(area)
            prob = f", p {float(row['probability']):.2f}" if row.get("probability") else ""
            said, counts = f"{format_percent(worst)} %{prob}", worst > 0
        else:
            is_clear = "truth_area" not in row and all(row.get(f"label({name})") == "0" for name in classes)
            worst, name = max((float(row.get(f"p({name})") or 0), name) for name in classes)
            said, counts = f"p({name}) {worst:.2f}", worst >= PRESENT_PROB
        clear += is_clear
        if is_clear and counts:
            found.append((-worst, row["key"], said))
    of = f"the {clear} images without {classes[0].replace('_', ' ') if len(classes) == 1 else 'any of the classes'}"
    told = f"alarm: the worst of the false alarms on {len(found)} of {of}" if found else f"no false alarm on {of}"
    return [(key, said) for _, key, said in sorted(found)], told if clear else ""


def choose_ranks(ranked: Sequence[Any]) -> list[tuple[str, Any]]:
    """[(worst, median or best, entry)]: equally many of each; all if there are no more than SHOWN."""
    each, total = SHOWN // len(RANKS), len(ranked)
    if total <= SHOWN:
        return [(RANKS[round(2 * n / max(total - 1, 1))], entry) for n, entry in enumerate(ranked)]
    middle = (total - each) // 2
    places = [*range(each), *range(middle, middle + each), *range(total - each, total)]
    return [(RANKS[n // each], ranked[place]) for n, place in enumerate(places)]


def draw_panels(shards: ShardFolder, number: int, prediction: Prediction) -> list[dict[str, str]]:
    """Pictures of one image, each with a heading and an alternative text."""
    classes = shards.index.classes
    several, image_HW3 = len(classes) > 1, shards.image(number)
    tile_HW3, what = as_tile(image_HW3, STRIP_PX), shards.keys[number]
    named = [name for name, is_there in zip(classes, shards.image_label_NK[number], strict=True) if is_there]
    label = ", ".join(named) or "no class"
    label_HW = prediction.label_at(image_HW3.shape[:2])
    predicted = say_areas(label_HW, classes)
    if shards.index.supervision == "label":
        panels = [("image", tile_HW3, f"{what}, labelled {label}")]
        mask_HW3 = tile_HW3
    else:
        truth_HW = shards.mask(number)
        first_HW3 = draw_truth(tile_HW3, at_tile(truth_HW, tile_HW3), several=several)
        panels = [("image, truth", first_HW3, f"{what} with the outline of the truth: {say_areas(truth_HW, classes)}")]
        mask_HW3 = tile_HW3 if several else first_HW3
    map_HW3 = prediction.draw_map(tile_HW3)
    if map_HW3 is not None:
        panels.append(("map", map_HW3, f"{what} under its map of {label}"))
    drawn_HW3 = draw_mask(mask_HW3, at_tile(label_HW, tile_HW3), several=several)
    panels.append(("mask", drawn_HW3, f"{what} with the outline of the predicted mask: {predicted}"))
    return [{"heading": heading, "picture": encode_data_uri(picture), "alt": alt} for heading, picture, alt in panels]


def say_areas(mask_HW: np.ndarray, classes: Sequence[str]) -> str:
    """The classes of a mask, each with its share of the image."""
    known = mask_HW[mask_HW != IGNORE_INDEX]
    shares = [(name, (known == class_id).mean()) for class_id, name in enumerate(classes, start=1) if known.size]
    return ", ".join(f"{name} on {100 * share:.1f} %" for name, share in shares if share) or "nothing"
