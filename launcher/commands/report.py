"""`wsss report`."""

import typer

from launcher.commands.arguments import FIGURES, RunsFolder, example


def register(app: typer.Typer) -> None:
    """Add `report` to a command."""
    app.command(epilog=example("wsss report runs/demo"), rich_help_panel=FIGURES)(report)


def report(folder: RunsFolder) -> None:
    """One HTML page: figures, curves, overlays."""
    from launcher.evaluation.report import write_report

    print(f"report: {write_report(folder)}")
