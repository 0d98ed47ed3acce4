"""Images -> their masks and overlays."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from launcher.predict import draw
from launcher.predict.masks import Prediction, check_kept, describe_classes, predict_frame
from launcher.predict.model import Model
from launcher.predict.outputs import Failure, Folder, ImageRows, stamp_of
from launcher.predict.settings import Settings, look_as
from launcher.predict.sources import Input, read_image
from launcher.predict.views import in_batches
from launcher.progress import Progress
from shards.schema import DataError


class Read(NamedTuple):
    input: Input
    stamp: tuple[int, int]
    image: np.ndarray


def predict_images(
    model: Model, settings: Settings, inputs: Sequence[Input], out: Folder, rows: ImageRows
) -> list[Failure]:
    """Predict all images that are not done yet; returns those that could not be read."""
    todo = [each for each in inputs if not is_done(out, rows, each)]
    failures: list[Failure] = []
    with Progress(len(inputs), "predict", "frame", initial=len(inputs) - len(todo)) as progress:
        readable = read_all(todo, settings, failures, progress)
        for batch in in_batches(readable, settings.batch_size):
            found = look_as(settings, model, [each.image for each in batch])
            for each, looked in zip(batch, found, strict=True):
                classes = model.class_set.classes
                prediction = predict_frame(each.image, looked, settings, classes, model.config.segment)
                write_image(out, rows, settings, each, prediction)
                progress.advance()
            batch.clear()  # before the next one is read
    return failures


def is_done(out: Folder, rows: ImageRows, each: Input) -> bool:
    return rows.has(each.key, stamp_of(each.path)) and out.place("masks", each.key).is_file()


def read_all(todo: Sequence[Input], settings: Settings, failures: list[Failure], progress: Progress) -> Iterator[Read]:
    """The images that can be read; the others become failures, each reported at once."""
    for each in todo:
        try:
            stamp = stamp_of(each.path)
            image_HW3 = read_image(each.path)
            check_kept(settings, image_HW3.shape[:2])
        except DataError as error:
            failures.append(Failure.of(each.path, str(error)))
            progress.say(f"left out: {failures[-1].reason}")
            progress.advance()
            continue
        yield Read(each, stamp, image_HW3)


def write_image(out: Folder, rows: ImageRows, settings: Settings, each: Read, prediction: Prediction) -> None:
    """Write all pictures of one image, and then its row."""
    key, classes = each.input.key, describe_classes(prediction)
    out.write_mask(key, prediction.mask)
    out.write("overlays", key, draw.jpeg(draw.overlay(each.image, prediction.mask, draw.words_of(classes))))
    if settings.heat:
        out.write("heat", key, draw.jpeg(draw.heat(each.image, prediction)))
    rows.append(row_of(each.input, key, each.image, classes) | {"stamp": each.stamp})


def row_of(
    of: Input, name: str, image_HW3: np.ndarray, classes: list[dict[str, Any]], **further: Any
) -> dict[str, Any]:
    """The row of a frame whose pictures have this name."""
    height, width = image_HW3.shape[:2]
    about = {"key": of.key, "file": of.name, "name": name, "width": width, "height": height, "classes": classes}
    return {**about, "mask": f"masks/{name}.png", **further}
