"""`wsss infer`."""

import shutil
from typing import Annotated

import typer

from launcher.commands.arguments import MASKS, Overrides, Overwrite, RunFolder, Split, example


def register(app: typer.Typer) -> None:
    """Add `infer` to a command."""
    line = "wsss infer runs/demo/student cam.scales=[0.5,1,1.5] --overwrite"
    app.command(epilog=example(line), rich_help_panel=MASKS)(infer)


def infer(
    run: RunFolder,
    overrides: Overrides = None,
    split: Split = None,
    name: Annotated[
        str | None, typer.Option(help="A further set of CAMs, in RUN/cams@NAME, next to the run's own.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """CAMs of every kind, as CAM shards below RUN/cams."""
    from launcher.jobs.infer import cams_folder
    from launcher.jobs.infer import infer as infer_here
    from launcher.processes.accelerator import process_count, uses_cpu
    from launcher.processes.launch import launch
    from launcher.run.folder import Run, split_folders

    settings = Run(run, overrides or []).config
    for of_split, folder in split_folders(settings, split).items():
        if overwrite:
            shutil.rmtree(cams_folder(run, name) / of_split, ignore_errors=True)
        if uses_cpu(settings) or process_count(settings) == 1:
            print(f"CAMs: {infer_here(run, of_split, folder, overrides or [], name)}")
        elif code := launch(
            settings, "launcher.jobs.infer", [str(run), of_split, str(folder), name or "-", *(overrides or [])]
        ):
            raise typer.Exit(code)
