"""`wsss shards images`: images with image-level labels of any classes to verified shards."""

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launcher.commands.arguments import (
    Exif,
    FrameColumn,
    HeldMasks,
    HoldOut,
    HoldOutSeed,
    LackClasses,
    MaskValues,
    Only,
    Out,
    Shards,
    SkipUnmasked,
    SplitColumn,
    SplitName,
    Turned,
    Workers,
    example,
    refuse_idle,
)
from launcher.files import require_here
from launcher.jobs.write_shards import warn_of_copies, write_held_out

if TYPE_CHECKING:
    from shards.sources.images import Found


class EmptyCell(str, Enum):
    refuse = "refuse"
    background = "background"
    skip = "skip"


def register(app: typer.Typer) -> None:
    """Add the command to `wsss shards`."""
    line = (
        "wsss shards images --root pets --labels labels.csv --out data/pets --split train --hold-out val=0.2,tune=0.15"
    )
    app.command(epilog=example(line))(images)


def images(
    root: Annotated[Path, typer.Option(help="Folder of your images.", callback=require_here)],
    out: Out,
    split: SplitName,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="csv, json table, COCO json or folder of VOC xml, relative to --root. Default: folders are classes.",
            callback=require_here,
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(help="Class names in the order of their ids: cat,dog or a file. Default: all that occur."),
    ] = None,
    label_column: Annotated[str, typer.Option(help="Column with the classes of an image.")] = "labels",
    separator: Annotated[str, typer.Option(help="What separates the names in that column.")] = ";",
    empty: Annotated[
        EmptyCell,
        typer.Option(help="What to do with an empty cell: refuse it, read it as no class, or skip the image."),
    ] = EmptyCell.refuse,
    drop_others: Annotated[
        bool, typer.Option("--drop-others", help="Drop names that --classes lacks from the labels.")
    ] = False,
    group_column: Annotated[
        str | None,
        typer.Option(help="Column with the video, scene or person. Default: group, if there is such a column."),
    ] = None,
    group_pattern: Annotated[
        str | None, typer.Option(help="Regular expression on the image's name; its first group is the group.")
    ] = None,
    frame_column: FrameColumn = None,
    hold_out: HoldOut = None,
    hold_out_seed: HoldOutSeed = 0,
    masks: HeldMasks = False,
    skip_unmasked: SkipUnmasked = False,
    image_folder: Annotated[str, typer.Option(help="Folder of the images, below --root.")] = "",
    mask_folder: Annotated[str, typer.Option(help="Folder of the masks, below --root.")] = "masks",
    mask_values: MaskValues = None,
    split_column: SplitColumn = None,
    only: Only = None,
    exif: Exif = Turned.keep,
    may_lack_classes: LackClasses = False,
    shards: Shards = 32,
    workers: Workers = None,
) -> None:
    """Images of any classes with image-level labels: a table, COCO's json, VOC's xml, or a folder per class."""
    from shards.sources.held_out import parse_shares
    from shards.sources.images import LABELS, parse_classes, read_images

    if labels is None:
        of_cells = {"separator": separator != ";", "empty": empty is not EmptyCell.refuse, "split_column": split_column}
        refuse_idle("there are no --labels, folders are the classes", label_column=label_column != LABELS, **of_cells)
    if hold_out is None:
        refuse_idle("there is no --hold-out", hold_out_seed=hold_out_seed)
    if not masks:
        refuse_idle("there are no --masks", mask_values=mask_values, skip_unmasked=skip_unmasked)
    known = parse_classes(classes, out)
    if known is None:
        refuse_idle("there are no --classes", drop_others=drop_others)
    shares = parse_shares(hold_out, "val", split) if hold_out is not None else {}
    found = read_images(
        root,
        labels,
        classes=known,
        split=split,
        split_column=split_column,
        only=only,
        image_folder=image_folder,
        mask_folder=mask_folder,
        label_column=label_column,
        separator=separator,
        group_column=group_column,
        group_pattern=group_pattern,
        frame_column=frame_column,
        empty=empty.value,
        drop_others=drop_others,
        exif=exif.value,
        mask_values=mask_values,
    )
    tell_found(found)
    warn_of_copies(found.source)
    of_split = write_held_out(
        found.source,
        out,
        split,
        shares=shares,
        seed=hold_out_seed,
        masks=masks,
        skip_unmasked=skip_unmasked,
        shards=shards,
        workers=workers,
        may_lack_classes=may_lack_classes,
    )
    for name, one in of_split.items():
        clear = sum(not row.image_label for row in one.rows)
        print(f"{out / name}: {clear} of {len(one)} images show none of the classes")


def tell_found(found: "Found") -> None:
    """Print how many images there are, and what was left out."""
    from shards.sources.names import IMAGE_ENDINGS

    print(f"{len(found.source)} images of {len({*found.source.groups()})} groups: {found.grouped_by}")
    if found.others:
        endings = ", ".join(IMAGE_ENDINGS)
        print(f"{len(found.others)} files whose name ends with none of {endings} are left out, first {found.others[0]}")
    if found.dropped:
        print(f"left out of the labels: {', '.join(f'{name} in {count}' for name, count in found.dropped.items())}")
    if found.skipped:
        print(f"{found.skipped} images with an empty label are left out")
