"""`wsss report`."""

from pathlib import Path
from typing import Annotated

import typer

from launcher.commands.arguments import FIGURES, example


def register(app: typer.Typer) -> None:
    """Add `report` to a command."""
    app.command(epilog=example("wsss report runs/demo"), rich_help_panel=FIGURES)(report)


def report(
    folder: Annotated[Path, typer.Argument(help="A run, or a folder of runs to show next to each other.")],
) -> None:
    """One HTML page: figures, curves, overlays."""
    from launcher.evaluation.report import write_report

    print(f"report: {write_report(folder)}")
