"""Arguments and options that several commands share, declared once, and what commands print of themselves."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from launcher.files import place_run, require_here


class Turned(str, Enum):
    keep = "keep"
    apply = "apply"


RunFolder = Annotated[Path, typer.Argument(help="Folder of a run, such as runs/demo/student.", callback=place_run)]
RunsFolder = Annotated[Path, typer.Argument(help="A run, or a folder of runs.", callback=place_run)]
ConfigFile = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG",
        help="YAML that describes the whole run, or the name of one that ships, such as demo/teacher.",
        callback=require_here,
    ),
]
Overrides = Annotated[list[str] | None, typer.Argument(help="section.key=value, the value in YAML.")]
Split = Annotated[str | None, typer.Option(help="Only this split: val, tune or train. Default: val and tune.")]
Overwrite = Annotated[bool, typer.Option(help="Remove what was made before with other settings.")]
SegmentSet = Annotated[str | None, typer.Option(help="A further set of masks, in RUN/segments@NAME.")]
Json = Annotated[bool, typer.Option("--json", help="Print only a JSON object.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, print the commands, run nothing.")]

ShardFolderPlace = Annotated[str, typer.Argument(metavar="FOLDER", help="Folder or URL with index.json.")]
Out = Annotated[Path, typer.Option(help="Folder that gets one folder per split.", callback=require_here)]
SplitName = Annotated[str, typer.Option(help="Name of the split that is written.")]
Shards = Annotated[int, typer.Option("--shards", help="Tar files per split, at most; tens, so that readers can share.")]
Workers = Annotated[int | None, typer.Option(help="Worker processes; one per core if not given.")]
Only = Annotated[
    Path | None, typer.Option("--list", help="Text file of names to take, one per line.", callback=require_here)
]
SplitColumn = Annotated[
    str | None,
    typer.Option(help="Column of splits: take the rows that say --split; COLUMN=NAME where the table says NAME."),
]
LackClasses = Annotated[
    bool, typer.Option("--may-lack-classes", help="Write a label-only split in which no image shows some class.")
]
Exif = Annotated[
    Turned, typer.Option(help="Images with an EXIF orientation, turned clips: keep their pixels, or turn them upright.")
]
MaskValues = Annotated[
    str | None,
    typer.Option(help="Grey levels of masks that are no ids: 0=background,255=smoke,other=ignore."),
]
FrameColumn = Annotated[
    str | None, typer.Option(help="Column that numbers the frames of a group, then one clip; for data.pairs.")
]
HoldOut = Annotated[
    str | None,
    typer.Option(help="Write whole groups of such shares of the rows as splits of their own: val=0.2,tune=0.15."),
]
HoldOutSeed = Annotated[int, typer.Option("--hold-out-seed", help="Another one holds other groups out.")]
Masks = Annotated[bool, typer.Option(help="Pixel shards with masks, for evaluation; default: label-only.")]
HeldMasks = Annotated[
    bool, typer.Option("--masks", help="Masks, for evaluation: in the splits held out, or else in --split.")
]
SkipUnmasked = Annotated[
    bool, typer.Option("--skip-unmasked", help="Leave images with a class and without a mask out of what has masks.")
]

# The panels of `wsss --help`, in the order in which a user works.
TRAINING, MASKS, FIGURES, CARE = "Data and training", "Maps and masks", "Metrics", "Looking after runs"


def refuse_idle(because: str, **given: object) -> None:
    """Raise ConfigError for options of a command that are given and have no effect.

    Args:
        because: in words.
        given: {option: its value, or anything that is true only where it was given}.
    """
    from launcher.errors import ConfigError

    if named := [f"--{name.replace('_', '-')}" for name, value in given.items() if value]:
        raise ConfigError(
            f"{', '.join(named)} without effect: {because}; leave {'it' if len(named) == 1 else 'them'} out"
        )


def example(line: str) -> str:
    """The line that ends a command's help."""
    return f"Example:  {line}"
