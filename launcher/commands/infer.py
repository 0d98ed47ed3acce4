"""`wsss infer`."""

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
    from launcher.jobs.infer import infer as infer_split
    from launcher.processes.launch import run_or_launch
    from launcher.run.folder import Run, split_folders

    settings = Run(run, overrides or []).config
    for of_split, folder in split_folders(settings, split).items():
        out = cams_folder(run, name) / of_split
        arguments = {"run": run, "split": of_split, "folder": folder, "overrides": overrides or [], "name": name}
        arguments["overwrite"] = overwrite
        run_or_launch(settings, "launcher.jobs.infer", infer_split, arguments, cpu_alone=True)
        print(f"CAMs: {out}")
    if split != "train":
        print(f"next: wsss evaluate {run}   # or first masks: wsss refine {run}")
