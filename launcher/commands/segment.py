"""`wsss segment` and `wsss pack-voc`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from launcher.commands.arguments import MASKS, Overrides, Overwrite, RunFolder, SegmentSet, example
from launcher.errors import ConfigError
from launcher.files import require_here, typed


def register(app: typer.Typer) -> None:
    """Add `segment` and `pack-voc` to a command."""
    line = "wsss segment runs/voc/toco_vitb segment.scales=[1,1.5,1.25] segment.flip=true --name ms_crf"
    app.command(epilog=example(line), rich_help_panel=MASKS)(segment)
    line = "wsss pack-voc runs/voc/toco_vitb --name ms_crf"
    app.command("pack-voc", epilog=example(line), rich_help_panel=MASKS)(pack_voc)


def segment(
    run: RunFolder,
    overrides: Overrides = None,
    split: Annotated[str, typer.Option(help="val, tune or train; with --shards, the name of that split.")] = "val",
    shards: Annotated[
        str | None, typer.Option(help="Folder or URL of other image shards, such as VOC's test split.")
    ] = None,
    name: SegmentSet = None,
    cams: Annotated[
        bool, typer.Option("--cams", help="Also write label maps from the CAMs, using the image labels.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Write the network's own segmentation as mask shards to RUN/segments."""
    from launcher.jobs.segment import segment as segment_split
    from launcher.run.folder import Run
    from launcher.run.idle import name_idle

    settings = Run(run, overrides or []).config
    if said := name_idle(settings, "segment"):
        print(said, file=sys.stderr)
    folder = shards or {"val": settings.data.val, "tune": settings.data.tune, "train": settings.data.train}.get(split)
    if folder is None:
        raise ConfigError(f"--split {split}: {run} has no such split; give its folder with --shards")
    out = segment_split(run, split, folder, overrides or [], name, cams=cams, overwrite=overwrite)
    print(f"masks: {out}")
    if split == "val":
        print(f"next: {typed('evaluate', run)}")


def pack_voc(
    run: RunFolder,
    name: SegmentSet = None,
    split: Annotated[str, typer.Option(help="The split that was segmented.")] = "test",
    out: Annotated[
        Path | None,
        typer.Option(help="Archive to write. Default: RUN/voc2012_SET_SPLIT.tar.gz.", callback=require_here),
    ] = None,
) -> None:
    """Pack the masks of `wsss segment RUN --split test` for the PASCAL VOC evaluation server, and check the archive."""
    from launcher.jobs.voc_archive import pack_voc as pack

    path, count = pack(run, name=name, split=split, out=out)
    print(f"{path}: {count} images, reopened and checked")
