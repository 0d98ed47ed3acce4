"""`wsss shards ijmond` and `rise`: the smoke paper's labelled clips, and the addresses of their videos."""

from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from launcher.commands.arguments import Exif, LackClasses, Only, Out, Shards, SplitName, Turned, Workers, example
from launcher.files import require_here
from launcher.jobs.write_shards import write_clips


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


class Dataset(str, Enum):
    ijmond = "ijmond"
    rise = "rise"


Metadata = Annotated[Path, typer.Option(help="json with the videos and their label states.", callback=require_here)]
Videos = Annotated[Path, typer.Option(help="Folder with the mp4 files, at any depth.", callback=require_here)]
States = Annotated[
    list[State] | None, typer.Option("--state", help="Label strength to include; repeatable. Default: gold, strong.")
]
By = Annotated[LabelledBy, typer.Option(help="Whose label counts.")]
Smoke = Annotated[
    bool | None, typer.Option("--smoke/--no-smoke", help="Include only clips with smoke, or only clips without.")
]
Group = Annotated[GroupBy, typer.Option(help="What forms a group; splits never share one.")]
SkipMissing = Annotated[bool, typer.Option("--skip-missing", help="Leave out clips whose file is missing.")]
STRONG = (State.gold, State.strong)


def register(app: typer.Typer) -> None:
    """Add the commands to `wsss shards`."""
    lines: dict[Callable[..., None], str] = {
        ijmond: "wsss shards ijmond --metadata metadata.json --videos videos --out data/ijmond --split train",
        rise: "wsss shards rise --metadata metadata_02242020.json --videos videos --out data/rise --split train",
        video_urls: "wsss shards video-urls --dataset ijmond --metadata metadata.json > urls.txt",
    }
    for command, line in lines.items():
        app.command(epilog=example(line))(command)


def ijmond(
    metadata: Metadata,
    videos: Videos,
    out: Out,
    split: SplitName,
    frames: Annotated[int, typer.Option(min=1, help="Number of evenly spaced frames per clip; 36 takes all.")] = 1,
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
    frames: Annotated[
        int, typer.Option(min=1, help="Number of evenly spaced frames per clip; 2 takes the first and the middle one.")
    ] = 2,
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


def video_urls(
    dataset: Annotated[Dataset, typer.Option(help="The data set that the metadata is of.")],
    metadata: Metadata,
    url_root: Annotated[str | None, typer.Option(help="Base URL of the videos. Default: as in the metadata.")] = None,
) -> None:
    """Print the URLs of all videos of a metadata file, one per line, for a download program."""
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
