"""`wsss shards ijmond-frames` and `smoke5k`: the smoke paper's data with masks."""

from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from launcher.commands.arguments import (
    Exif,
    LackClasses,
    Masks,
    Only,
    Out,
    Shards,
    SplitName,
    Turned,
    Workers,
    example,
    refuse_idle,
)
from launcher.files import require_here
from launcher.jobs.write_shards import write


class Crops(str, Enum):
    none = "none"
    legacy = "legacy"
    grid = "grid"


def register(app: typer.Typer) -> None:
    """Add the commands to `wsss shards`."""
    lines: dict[Callable[..., None], str] = {
        ijmond_frames: "wsss shards ijmond-frames --annotations coco.json --images png --out data/ijmond --split val",
        smoke5k: "wsss shards smoke5k --root SMOKE5K/train --groups scenes.csv --out data/smoke5k --split train",
    }
    for command, line in lines.items():
        app.command(epilog=example(line))(command)


def ijmond_frames(
    annotations: Annotated[Path, typer.Option(help="COCO json with polygons of smoke.", callback=require_here)],
    images: Annotated[
        Path,
        typer.Option(help="Folder of the images, to which file names in the json are relative.", callback=require_here),
    ],
    out: Out,
    split: SplitName,
    masks: Annotated[bool, typer.Option(help="Write shards with masks, or label-only.")] = True,
    crops: Annotated[
        Crops, typer.Option(help="Whole frames, the paper's crops, or a grid over the frame.")
    ] = Crops.legacy,
    window: Annotated[int, typer.Option(min=1, help="Side of a crop, in pixels.")] = 512,
    stride: Annotated[
        int | None,
        typer.Option(min=1, help="Distance between crops, in pixels. Default: 128 (legacy), --window (grid)."),
    ] = None,
    negatives: Annotated[
        int, typer.Option(min=0, help="Smoke-free crops per frame with --crops legacy; the paper has 0.")
    ] = 3,
    category: Annotated[
        list[str] | None,
        typer.Option(help="Category that means smoke; repeatable. Default: smoke, high- and low-opacity smoke."),
    ] = None,
    group_pattern: Annotated[
        str | None, typer.Option(help="Regular expression on the file name; its first group is the group (video).")
    ] = None,
    exif: Exif = Turned.keep,
    may_lack_classes: LackClasses = False,
    shards: Shards = 32,
    workers: Workers = None,
) -> None:
    """IJmond frames with polygons, whole or cropped."""
    from dataclasses import replace

    from shards.sources.crops import crop
    from shards.sources.ijmond import GROUP_PATTERN, read_frames_with_polygons

    if crops is not Crops.legacy:
        of_crops = {"window": window != 512, "stride": stride} if crops is Crops.none else {}
        refuse_idle(f"--crops is {crops.value}", negatives=negatives != 3, **of_crops)
    source = read_frames_with_polygons(
        annotations, images, categories=category, group_pattern=group_pattern or GROUP_PATTERN, exif=exif.value
    )
    left_out = ", ".join(f"{count} of '{name}'" for name, count in source.left_out.items())
    print(f"{len(source)} frames; annotations of other categories, left out: {left_out or 'none'}")
    if crops is Crops.none:
        write(replace(source, with_masks=masks), out, split, masks, shards, workers, may_lack_classes)
        return
    cropped = crop(
        source,
        crops.value,
        window=window,
        stride=stride,
        negatives=negatives,
        with_masks=masks,
        run=with_progress,
    )
    write(cropped, out, split, masks, shards, workers, may_lack_classes)


def smoke5k(
    root: Annotated[Path, typer.Option(help="Folder with img/ and gt/.", callback=require_here)],
    out: Out,
    split: SplitName,
    masks: Masks = False,
    only: Only = None,
    groups: Annotated[
        Path | None,
        typer.Option(help="Groups (scenes): a csv (key, group) or a json {key: group}.", callback=require_here),
    ] = None,
    image_folder: Annotated[str, typer.Option(help="Folder of the images, below --root.")] = "img",
    mask_folder: Annotated[str, typer.Option(help="Folder of the masks, below --root.")] = "gt",
    exif: Exif = Turned.keep,
    may_lack_classes: LackClasses = False,
    shards: Shards = 32,
    workers: Workers = None,
) -> None:
    """SMOKE5K. An image is labelled smoke if its mask shows smoke."""
    from shards.sources.smoke5k import NO_GROUPS, read_smoke5k

    source = read_smoke5k(
        root,
        only=only,
        groups=groups,
        image_folder=image_folder,
        mask_folder=mask_folder,
        with_masks=masks,
        exif=exif.value,
    )
    if groups is None:
        typer.echo(f"warning: {NO_GROUPS}", err=True)
    write(source, out, split, masks, shards, workers, may_lack_classes)


def with_progress(work: Callable[[int], Any], frames: Iterable[int]) -> Iterator[Any]:
    """`map` with progress."""
    from launcher.progress import Progress

    numbers = list(frames)
    progress = Progress(len(numbers), "plan crops", "frame")
    for number in numbers:
        yield work(number)
        progress.advance()
