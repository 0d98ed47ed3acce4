"""A clip -> masks of its frames, an annotated mp4 and the area over time, in memory that does not depend on its length.

It is decoded twice. In the first pass the network processes every frame, and the maps are stored on disk in parts. In
the second pass, which knows the whole clip, the maps become masks and pictures. Both passes continue after a kill; only
the mp4 is encoded again, from the finished masks.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from functools import reduce
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from launcher.files import write_whole
from launcher.predict import draw
from launcher.predict.images import row_of
from launcher.predict.masks import check_kept, describe_classes, predict_frame
from launcher.predict.model import Model
from launcher.predict.movie import Movie
from launcher.predict.outputs import CLIP, PICTURES, Failure, Folder, Rows, stamp_of
from launcher.predict.parts import Seen, parts_of, read_part, seen_of, smoothed, write_part
from launcher.predict.settings import Settings, look_as
from launcher.predict.sources import Input
from launcher.predict.views import in_batches
from launcher.progress import Progress
from shards.schema import DataError
from shards.sources.video import TimedFrame, about_clip, timed_frames

PART = 32  # frames whose maps are in one file; at most this many are processed again after a kill
STILLS = 12  # overlays of a clip, for the contact sheet
ABOUT = "clip.json"  # what the first pass learned about the whole clip


def predict_clip(model: Model, settings: Settings, clip: Input, out: Folder) -> list[Failure]:
    """Predict a clip, or the missing part of it; returns what could not be read."""
    work = out.rows / f"{CLIP}{clip.key}"
    stamp, begun, about = [*stamp_of(clip.path)], work / "stamp.json", work / ABOUT
    movie = out.path / "clips" / f"{clip.key}.mp4"
    rows = Rows(work / "rows.jsonl")

    def is_drawn() -> bool:
        known = json.loads(about.read_text())
        return known["frames"] == 0 or (movie.is_file() and rows.count == known["frames"])

    changed = not begun.is_file() or json.loads(begun.read_text()) != stamp
    if changed or (about.is_file() and not is_drawn() and not parts_of(work)):  # or the mp4 was removed
        for old in (work, *(out.path / kind / clip.key for kind in PICTURES)):
            shutil.rmtree(old, ignore_errors=True)
        work.mkdir()
        write_whole(begun, json.dumps(stamp))
        rows = Rows(rows.path)
    if not about.is_file():
        write_whole(about, json.dumps(look_at_clip(model, settings, clip, work)))
    known = json.loads(about.read_text())
    if not is_drawn():
        draw_clip(model, settings, clip, out, known, rows)
    for part in parts_of(work):
        part.unlink()
    return [Failure(*failure) for failure in known["failures"]]


def look_at_clip(model: Model, settings: Settings, clip: Input, work: Path) -> dict[str, Any]:
    """Write the maps of all frames to parts; {frames, failures, strongest: (K,) the largest strength of each class}."""
    known = [read_part(part) for part in parts_of(work)]
    at = known[-1]["at"] + 1 if known else 0
    failures = [Failure(*failure) for part in known for failure in part["failures"]]
    strengths = [part["strength_NK"] for part in known if len(part["strength_NK"])]
    strongest: Any = reduce(np.maximum, [strength_NK.max(0) for strength_NK in strengths], 0.0)
    frames, parts = sum(len(part["number_N"]) for part in known), len(known)
    seen: list[Seen] = []
    told: list[Failure] = []  # in the current part
    decoded, total = timed_frames(clip.path, settings.every_s), estimate(clip.path, settings)
    with closing(decoded), Progress(total, f"look at {clip.name}", "frame", initial=frames) as progress:
        batches = in_batches(readable(decoded, clip, settings, at, told, progress), settings.batch_size)
        for batch in chain(batches, [[]]):  # an empty one after the last
            images = [frame.image for frame in batch if frame.image is not None]
            found = look_as(settings, model, images)
            seen += [Seen(frame.number, frame.time_s, looked) for frame, looked in zip(batch, found, strict=True)]
            if len(seen) >= PART or (not batch and (seen or told)):
                write_part(work, parts, seen, told)
                strongest = reduce(np.maximum, [each.looked.strength for each in seen], strongest)
                parts, frames, failures = parts + 1, frames + len(seen), failures + told
                seen.clear()
                told.clear()
            if batch:
                progress.advance(len(batch))
            batch.clear()  # before the next one is read
    return {
        "frames": frames,
        "failures": list(dict.fromkeys(failures)),
        "strongest": np.asarray(strongest).tolist(),
    }


def readable(
    decoded: Iterator[TimedFrame], clip: Input, settings: Settings, at: int, told: list[Failure], progress: Progress
) -> Iterator[TimedFrame]:
    """The readable frames from number `at` on; the others are reported and added to `told`."""

    def leave_out(reason: str, frame: int | None = None) -> None:
        told.append(Failure.of(clip.path, reason, frame))
        progress.say(f"left out: {told[-1].reason}")

    try:
        for frame in decoded:
            if frame.number < at:
                continue
            if frame.image is None:
                leave_out("is damaged", frame.number)
                continue
            check_kept(settings, (frame.image.shape[0], frame.image.shape[1]))
            yield frame
    except DataError as error:
        leave_out(str(error))


def estimate(path: Path, settings: Settings) -> int:
    """The approximate number of frames, from the header."""
    try:
        rate, duration_s = about_clip(path)
    except DataError:
        return 0
    return int(duration_s * rate if settings.every_s is None else duration_s / settings.every_s)


def draw_clip(model: Model, settings: Settings, clip: Input, out: Folder, known: dict[str, Any], rows: Rows) -> None:
    """Second pass: masks, stills, rows, the mp4 and the plot. Frames that have a row are read from their masks."""
    work, classes, total = out.rows / f"{CLIP}{clip.key}", model.class_set.classes, known["frames"]
    seen = smoothed(seen_of(work, settings, np.asarray(known["strongest"], np.float32)), settings.smooth_s)
    done, stills = iter(list_of(rows)), {*np.linspace(0, total - 1, min(STILLS, total)).round().astype(int).tolist()}
    plot, target = draw.AreaPlot(classes, total), out.path / "clips" / f"{clip.key}.mp4"
    target.parent.mkdir(exist_ok=True)
    decoded = timed_frames(clip.path, settings.every_s)
    movie, progress = Movie(target, about_clip(clip.path).rate), Progress(total, f"draw {clip.name}", "frame")
    with closing(decoded), movie, progress:
        for n, each in enumerate(seen):
            image_HW3 = next((frame.image for frame in decoded if frame.number == each.number), None)
            assert image_HW3 is not None  # the first pass leaves damaged frames out
            name, row = f"{clip.key}/{each.number:06d}", next(done, None)
            mask_HW = None if row is None else out.read_mask(name)
            if row is None or mask_HW is None:
                prediction = predict_frame(image_HW3, each.looked, settings, classes, model.config.segment)
                mask_HW, of_classes = prediction.mask, describe_classes(prediction)
                out.write_mask(name, mask_HW)
                if settings.heat:
                    out.write("heat", name, draw.jpeg(draw.heat(image_HW3, prediction)))
            else:
                of_classes = row["classes"]
            shown = draw.overlay(image_HW3, mask_HW, draw.words_of(of_classes, each.time_s))
            if n in stills and not out.place("overlays", name).is_file():
                out.write("overlays", name, draw.jpeg(shown))
            if row is None:
                time_s = round(each.time_s, 3)
                rows.append(row_of(clip, name, image_HW3, of_classes, frame=each.number, time_s=time_s))
            movie.add(shown, each.time_s)
            plot.add(n, each.time_s, [of_class["area_percent"] for of_class in of_classes])
            progress.advance()
        write_whole(out.path / "clips" / f"{clip.key}.area.svg", plot.svg(clip.name))


def list_of(rows: Rows) -> Iterator[dict[str, Any]]:
    """The rows that exist when this begins."""
    for _, row in zip(range(rows.count), rows, strict=False):
        yield row
