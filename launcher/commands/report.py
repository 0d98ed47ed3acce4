"""`wsss report`."""

from pathlib import Path
from typing import Annotated

import typer

from launcher.commands.arguments import FIGURES, RunsFolder, example
from launcher.files import place_run, require_here


def register(app: typer.Typer) -> None:
    """Add `report` to a command."""
    app.command(epilog=example("wsss report runs/demo"), rich_help_panel=FIGURES)(report)


def report(
    folder: RunsFolder,
    control: Annotated[
        Path | None,
        typer.Option(
            help="Compare all runs with this one. Default: the control of their study.", callback=require_here
        ),
    ] = None,
) -> None:
    """Write one HTML page: pictures, headlines, curves, metrics."""
    from launcher.evaluation.report import write_report
    from launcher.studies.beside import find_known

    print(f"report: {write_report(folder, control=control and place_run(control), look_up=find_known)}")
