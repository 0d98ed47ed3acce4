"""`wsss shards ...` of the smoke paper's data: IJmond clips and frames, RISE, SMOKE5K."""

from collections.abc import Callable, Iterable, Iterator, Mapping
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
)
from launcher.files import require_here
from launcher.jobs.write_shards import write, write_clips


class State(str, Enum):
    gold = "gold"
    strong = "strong"
    weak = "weak"
    maybe = "maybe"


class LabelledBy(str, Enum):
    researchers_first = "researchers_first"
    researchers = "researchers"
    volunteers = "volunteers"


class GroupBy(str, Enum):
    scene = "scene"
    clip = "clip"
    camera = "camera"


class Crops(str, Enum):
    none = "none"
    legacy = "legacy"
    grid = "grid"


class Dataset(str, Enum):
    ijmond = "ijmond"
    rise = "rise"


Metadata = Annotated[Path, typer.Option(help="json of the videos and their label states.", callback=require_here)]
Videos = Annotated[Path, typer.Option(help="Folder with the mp4 files, anywhere below it.", callback=require_here)]
States = Annotated[
    list[State] | None, typer.Option("--state", help="Label strength to take, repeatable; default: gold, strong.")
]
By = Annotated[LabelledBy, typer.Option(help="Whose label counts.")]
Smoke = Annotated[bool | None, typer.Option("--smoke/--no-smoke", help="Only clips with, or without, smoke.")]
Group = Annotated[GroupBy, typer.Option(help="What a group is: splits never share one.")]
SkipMissing = Annotated[bool, typer.Option("--skip-missing", help="Leave out clips whose file is missing.")]
STRONG = (State.gold, State.strong)


def register(app: typer.Typer) -> None:
    """Add the commands to `wsss shards`."""
    lines: dict[Callable[..., None], str] = {
        ijmond: "wsss shards ijmond --metadata metadata.json --videos videos --out data/ijmond --split train",
        ijmond_frames: "wsss shards ijmond-frames --annotations coco.json --images png --out data/ijmond --split val",
        rise: "wsss shards rise --metadata metadata_02242020.json --videos videos --out data/rise --split train",
        smoke5k: "wsss shards smoke5k --root SMOKE5K/train --groups scenes.csv --out data/smoke5k --split train",
        video_urls: "wsss shards video-urls --dataset ijmond --metadata metadata.json > urls.txt",
    }
    for command, line in lines.items():
        app.command(epilog=example(line))(command)


def ijmond(
    metadata: Metadata,
    videos: Videos,
    out: Out,
    split: SplitName,
    frames: Annotated[int, typer.Option(min=1, help="Evenly spaced frames per clip; 36 takes all.")] = 1,
    group_by: Group = GroupBy.scene,
    state: States = None,
    labelled_by: By = LabelledBy.researchers_first,
    smoke: Smoke = None,
    only: Only = None,
    skip_missing: SkipMissing = False,
    exif: Exif = Turned.keep,
    may_lack_classes: LackClasses = False,
    shards: Shards = 32,
    workers: Workers = None,
) -> None:
    """Frames of the labelled IJmond clips, label-only."""
    from shards.sources.ijmond import read_ijmond

    options = clip_options(group_by, state, labelled_by, smoke, only, skip_missing, exif)
    write_clips(
        read_ijmond(metadata, videos, frames=frames, **options), out, split, smoke, shards, workers, may_lack_classes
    )


def rise(
    metadata: Metadata,
    videos: Videos,
    out: Out,
    split: SplitName,
    frames: Annotated[int, typer.Option(min=1, help="Evenly spaced frames per clip; 2: first and middle.")] = 2,
    group_by: Group = GroupBy.scene,
    state: States = None,
    labelled_by: By = LabelledBy.researchers_first,
    smoke: Smoke = None,
    only: Only = None,
    skip_missing: SkipMissing = False,
    exif: Exif = Turned.keep,
    may_lack_classes: LackClasses = False,
    shards: Shards = 32,
    workers: Workers = None,
) -> None:
    """Frames of the labelled RISE clips, label-only."""
    from shards.sources.rise import read_rise

    options = clip_options(group_by, state, labelled_by, smoke, only, skip_missing, exif)
    write_clips(
        read_rise(metadata, videos, frames=frames, **options), out, split, smoke, shards, workers, may_lack_classes
    )


def ijmond_frames(
    annotations: Annotated[Path, typer.Option(help="COCO json with polygons of smoke.", callback=require_here)],
    images: Annotated[
        Path, typer.Option(help="Folder that the json's file names are relative to.", callback=require_here)
    ],
    out: Out,
    split: SplitName,
    masks: Annotated[bool, typer.Option(help="Pixel shards with masks, or label-only.")] = True,
    crops: Annotated[
        Crops, typer.Option(help="Whole frames, the paper's crops, or a grid over the frame.")
    ] = Crops.legacy,
    window: Annotated[int, typer.Option(min=1, help="Side of a crop, in pixels.")] = 512,
    stride: Annotated[int | None, typer.Option(min=1, help="Default: 128 (legacy), the window (grid).")] = None,
    negatives: Annotated[int, typer.Option(min=0, help="Smoke-free legacy crops per frame; the paper: 0.")] = 3,
    category: Annotated[
        list[str] | None,
        typer.Option(help="Name that means smoke, repeatable; default: smoke, high- and low-opacity smoke."),
    ] = None,
    group_pattern: Annotated[
        str | None, typer.Option(help="Regular expression; its first group names a file's video.")
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

    source = read_frames_with_polygons(
        annotations, images, categories=category, group_pattern=group_pattern or GROUP_PATTERN, exif=exif.value
    )
    left_out = ", ".join(f"{count} of '{name}'" for name, count in source.left_out.items())
    print(f"{len(source)} frames; annotations of other categories, left out: {left_out or 'none'}")
    if crops is Crops.none:
        write(replace(source, with_masks=masks), out, split, masks, shards, workers, may_lack_classes)
        return
    cropped = crop(
        source,  # type: ignore[arg-type]
        crops.value,
        window=window,
        stride=stride,
        negatives=negatives,
        with_masks=masks,
        run=shown,
    )
    write(cropped, out, split, masks, shards, workers, may_lack_classes)


def smoke5k(
    root: Annotated[Path, typer.Option(help="Folder with img/ and gt/.", callback=require_here)],
    out: Out,
    split: SplitName,
    masks: Masks = False,
    only: Only = None,
    groups: Annotated[
        Path | None, typer.Option(help="csv (key, group) or json {key: group} of scenes.", callback=require_here)
    ] = None,
    image_folder: Annotated[str, typer.Option(help="Where images are, below --root.")] = "img",
    mask_folder: Annotated[str, typer.Option(help="Where masks are, below --root.")] = "gt",
    exif: Exif = Turned.keep,
    may_lack_classes: LackClasses = False,
    shards: Shards = 32,
    workers: Workers = None,
) -> None:
    """SMOKE5K; the label of an image is whether its mask shows smoke."""
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


def video_urls(
    dataset: Annotated[Dataset, typer.Option(help="Whose metadata it is.")],
    metadata: Metadata,
    url_root: Annotated[str | None, typer.Option(help="Where the videos are; default: what the metadata say.")] = None,
) -> None:
    """Print the addresses of all videos of a metadata file, one per line, for a download program."""
    from shards.sources.ijmond import video_urls as urls_of_ijmond
    from shards.sources.rise import video_urls as urls_of_rise

    urls_of: Mapping[Dataset, Callable[[Path, str | None], list[str]]] = {
        Dataset.ijmond: urls_of_ijmond,
        Dataset.rise: urls_of_rise,
    }
    print("\n".join(urls_of[dataset](metadata, url_root)))


def clip_options(
    group_by: GroupBy,
    state: list[State] | None,
    labelled_by: LabelledBy,
    smoke: bool | None,
    only: Path | None,
    skip_missing: bool,
    exif: Turned,
) -> dict[str, Any]:
    return {
        "group_by": group_by.value,
        "states": [one.value for one in state or STRONG],
        "labelled_by": labelled_by.value,
        "smoke": smoke,
        "only": only,
        "skip_missing": skip_missing,
        "exif": exif.value,
    }


def shown(work: Callable[[int], Any], frames: Iterable[int]) -> Iterator[Any]:
    """`map` with progress."""
    from launcher.progress import Progress

    numbers = list(frames)
    progress = Progress(len(numbers), "plan crops", "frame")
    for number in numbers:
        yield work(number)
        progress.advance()
