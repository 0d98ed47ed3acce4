"""`wsss refine`."""

import sys
from typing import Annotated

import typer

from launcher.commands.arguments import MASKS, Overrides, Overwrite, RunFolder, Split, example
from launcher.files import typed


def register(app: typer.Typer) -> None:
    """Add `refine` to a command."""
    line = "wsss refine runs/demo/student --name crf_g2 'refine.chain=[{name: crf, gamma: 2}]'"
    app.command(epilog=example(line), rich_help_panel=MASKS)(refine)


def refine(
    run: RunFolder,
    overrides: Overrides = None,
    split: Split = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the masks, stored in RUN/masks/KIND+NAME. Default: the names of the chain."),
    ] = None,
    cams: Annotated[str | None, typer.Option(help="Refine this set of CAMs (--name of `wsss infer`).")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Refine CAMs by the chain in `refine:`, in parallel, and write masks as mask shards to RUN/masks."""
    from launcher.jobs.refine import refine as refine_run
    from launcher.run.folder import Run, split_folders
    from launcher.run.idle import name_idle, refuse_overrides

    refuse_overrides("refine", overrides or [])
    settings = Run(run, overrides or []).config
    if said := name_idle(settings, "refine"):
        print(said, file=sys.stderr)
    wanted = list(split_folders(settings, split))
    made = refine_run(run, wanted, settings.refine, name=name, cams=cams, overwrite=overwrite, launch=settings.launch)
    for folder in made:
        print(f"masks: {folder}")
    if split != "train":
        print(f"next: {typed('evaluate', run)}")
