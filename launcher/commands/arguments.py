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
        help="YAML of the whole run, or the name of a config in the package, such as demo/teacher.",
        callback=require_here,
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Changes to the config: section.key=value, with the value in YAML.")
]
Split = Annotated[str | None, typer.Option(help="Process only this split: val, tune or train. Default: val and tune.")]
Overwrite = Annotated[bool, typer.Option(help="Remove earlier outputs that were made with other settings.")]
SegmentSet = Annotated[str | None, typer.Option(help="Name of a further set of masks, stored in RUN/segments@NAME.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything and print the commands; run nothing.")]

ShardFolderPlace = Annotated[
    str, typer.Argument(metavar="FOLDER", help="Folder or URL of shards (where index.json is).")
]
Out = Annotated[Path, typer.Option(help="Output folder; each split becomes a folder in it.", callback=require_here)]
SplitName = Annotated[str, typer.Option(help="Name of the split to write.")]
Shards = Annotated[
    int,
    typer.Option(
        "--shards", help="Maximum number of tar files per split. Use tens, so that several readers can share them."
    ),
]
Workers = Annotated[int | None, typer.Option(help="Number of worker processes. Default: one per core.")]
Only = Annotated[
    Path | None, typer.Option("--list", help="Text file of the names to include, one per line.", callback=require_here)
]
SplitColumn = Annotated[
    str | None,
    typer.Option(help="Column of splits: take the rows that say --split; COLUMN=NAME where the table says NAME."),
]
LackClasses = Annotated[
    bool, typer.Option("--may-lack-classes", help="Allow a label-only split that lacks images of some class.")
]
Exif = Annotated[
    Turned,
    typer.Option(
        help="Images with an EXIF orientation and rotated clips: keep the pixels as stored, or turn them upright."
    ),
]
MaskValues = Annotated[
    str | None,
    typer.Option(
        help="What the grey levels of masks mean, if they are not class ids: 0=background,255=smoke,other=ignore."
    ),
]
FrameColumn = Annotated[
    str | None,
    typer.Option(help="Column with the frame number within a clip, for data.pairs; each group is then one clip."),
]
HoldOut = Annotated[
    str | None,
    typer.Option(help="Hold out whole groups with these shares of the rows as further splits: val=0.2,tune=0.15."),
]
HoldOutSeed = Annotated[int, typer.Option("--hold-out-seed", help="Random seed that chooses the groups.")]
Masks = Annotated[bool, typer.Option(help="Write shards with masks, for evaluation. Default: label-only.")]
HeldMasks = Annotated[
    bool,
    typer.Option(
        "--masks",
        help="Write masks, for evaluation: into the splits that are held out or, without --hold-out, into --split.",
    ),
]
SkipUnmasked = Annotated[
    bool,
    typer.Option(
        "--skip-unmasked", help="From splits with masks, leave out images that show a class but have no mask."
    ),
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
        has, them = ("has", "it") if len(named) == 1 else ("have", "them")
        raise ConfigError(f"{', '.join(named)} {has} no effect: {because}; leave {them} out")


def example(line: str) -> str:
    """The line that ends a command's help."""
    return f"Example:  {line}"
