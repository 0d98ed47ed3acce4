"""`wsss shards`: raw data -> tar shards with an index; `verify`, `info` and `join` of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from launcher.commands import benchmark_shards, clip_shards, image_shards, smoke_shards
from launcher.commands.arguments import (
    TRAINING,
    Exif,
    FrameColumn,
    HeldMasks,
    HoldOut,
    HoldOutSeed,
    LackClasses,
    Masks,
    MaskValues,
    Only,
    Out,
    ShardFolderPlace,
    Shards,
    SkipUnmasked,
    SplitColumn,
    SplitName,
    Turned,
    Workers,
    example,
    refuse_idle,
)
from launcher.commands.offered_sources import SourceGroup
from launcher.files import require_here
from launcher.jobs.write_shards import summarise, warn_of_copies, write, write_held_out

HELP = "Turn raw data into tar shards with an index; inspect and verify shards."


def register(app: typer.Typer) -> None:
    """Add `shards` with all its sources to a command."""
    shards = typer.Typer(cls=SourceGroup, no_args_is_help=True, help=HELP)
    lines: dict[Callable[..., None], str] = {
        synthetic: "wsss shards synthetic --out data/demo --split train --images 640 --cooccurrence 0.9",
        smoke: "wsss shards smoke --root my --labels all.csv --out data/mine --split train --hold-out val=0.2,tune=0.1",
        verify: "wsss shards verify data/demo/train",
        info: "wsss shards info data/demo/train",
        join: "wsss shards join data/ijmond/train data/rise/train --out data/smoke --split train",
    }
    for command, line in lines.items():
        shards.command(epilog=example(line))(command)
    image_shards.register(shards)
    clip_shards.register(shards)
    smoke_shards.register(shards)
    benchmark_shards.register(shards)
    shards.callback(help=HELP)(begin)
    app.add_typer(shards, name="shards", rich_help_panel=TRAINING)


def begin() -> None:
    """Before each of the commands: of several tasks of srun the first does the work, for a split has one index."""
    from launcher.jobs.shares import is_first

    if not is_first("wsss shards"):
        raise typer.Exit


def synthetic(
    out: Out,
    split: Annotated[str, typer.Option(help="Name of the split; each name gives other random scenes.")],
    images: Annotated[int, typer.Option(min=1, help="Number of frames.")] = 256,
    size: Annotated[int, typer.Option(help="Side of the square frame, in pixels.")] = 128,
    cooccurrence: Annotated[float, typer.Option(help="P(chimney | smoke) = P(no chimney | no smoke).")] = 0.5,
    smoke_rate: Annotated[float, typer.Option(help="Share of frames with smoke.")] = 0.5,
    clip_frames: Annotated[
        int, typer.Option(min=0, help="Frames per clip, in which plumes drift; 0 = single images.")
    ] = 0,
    seed: int = 0,
    masks: Masks = False,
    may_lack_classes: LackClasses = False,
    shards: Shards = 32,
    workers: Workers = None,
) -> None:
    """Synthetic factory scenes with exact masks, in which chimneys and smoke may occur together."""
    from functools import partial

    from shards.sources.drifting import Drifting
    from shards.sources.synthetic import Synthetic

    kind = partial(Drifting, frames=clip_frames) if clip_frames else Synthetic
    source = kind(
        split=split,
        num_images=images,
        size=size,
        cooccurrence=cooccurrence,
        smoke_rate=smoke_rate,
        seed=seed,
        with_masks=masks,
    )
    write(source, out, split, masks, shards, workers, may_lack_classes)


def smoke(
    root: Annotated[Path, typer.Option(help="Folder of your frames.", callback=require_here)],
    labels: Annotated[
        Path, typer.Option(help="csv or json of image labels, relative to --root.", callback=require_here)
    ],
    out: Out,
    split: SplitName,
    split_column: SplitColumn = None,
    only: Only = None,
    masks: HeldMasks = False,
    skip_unmasked: SkipUnmasked = False,
    hold_out: HoldOut = None,
    hold_out_seed: HoldOutSeed = 0,
    image_folder: Annotated[str, typer.Option(help="Folder of the images, below --root.")] = "images",
    mask_folder: Annotated[str, typer.Option(help="Folder of the masks, below --root.")] = "masks",
    mask_values: MaskValues = None,
    label_column: Annotated[str, typer.Option(help="Column with the label: 1 (smoke) or 0.")] = "label",
    group_column: Annotated[str, typer.Option(help="Column with the video or scene.")] = "group",
    frame_column: FrameColumn = None,
    exif: Exif = Turned.keep,
    may_lack_classes: LackClasses = False,
    shards: Shards = 32,
    workers: Workers = None,
) -> None:
    """A folder of frames with a table of image labels: smoke or no smoke."""
    from shards.sources.held_out import parse_shares
    from shards.sources.smoke_images import read_table

    if hold_out is None:
        refuse_idle("there is no --hold-out", hold_out_seed=hold_out_seed)
    if not masks:
        refuse_idle("there are no --masks", mask_values=mask_values, skip_unmasked=skip_unmasked)
    shares = parse_shares(hold_out, "tune", split) if hold_out is not None else {}
    source = read_table(
        root,
        labels,
        split=split,
        split_column=split_column,
        only=only,
        image_folder=image_folder,
        mask_folder=mask_folder,
        label_column=label_column,
        group_column=group_column,
        frame_column=frame_column,
        exif=exif.value,
        mask_values=mask_values,
    )
    warn_of_copies(source)
    write_held_out(
        source,
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


def verify(folder: ShardFolderPlace) -> None:
    """Verify a folder of shards: read every byte and compare it with the index."""
    from shards.verify import verify as check

    index = check(folder)
    print(f"{folder}: {len(index.shards)} shards, {index.num_samples} samples, every byte as written")


def info(folder: ShardFolderPlace) -> None:
    """Print what a folder of shards contains."""
    print(summarise(folder))


def join(
    folders: Annotated[list[str], typer.Argument(help="Folders or URLs of shards, all label-only or all with masks.")],
    out: Out,
    split: SplitName,
    may_lack_classes: LackClasses = False,
    shards: Shards = 32,
    workers: Workers = None,
) -> None:
    """Join several folders of shards into one split, such as a training set from several data sets."""
    from shards.remote import place_of
    from shards.sources.joined import Joined

    source = Joined(tuple(map(place_of, folders)))
    write(source, out, split, source.supervision == "pixel", shards, workers, may_lack_classes)
