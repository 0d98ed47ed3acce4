"""`wsss infer`."""

from typing import Annotated

import typer

from launcher.commands.arguments import MASKS, Overrides, Overwrite, RunFolder, Split, example
from launcher.files import typed


def register(app: typer.Typer) -> None:
    """Add `infer` to a command."""
    line = "wsss infer runs/demo/student cam.scales=[0.5,1,1.5] --overwrite"
    app.command(epilog=example(line), rich_help_panel=MASKS)(infer)


def infer(
    run: RunFolder,
    overrides: Overrides = None,
    split: Split = None,
    name: Annotated[
        str | None, typer.Option(help="Name of a further set of CAMs, stored in RUN/cams@NAME next to the run's own.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Compute CAMs of every kind, and write them as CAM shards to RUN/cams."""
    from launcher.jobs.infer import infer as infer_split
    from launcher.run.folder import Run, split_folders

    settings = Run(run, overrides or []).config
    for of_split, folder in split_folders(settings, split).items():
        out = infer_split(run, of_split, folder, overrides or [], name, overwrite=overwrite)
        print(f"CAMs: {out}")
    if split != "train":
        print(f"next: {typed('evaluate', run)}   # or first masks: {typed('refine', run)}")
