"""`wsss status`: what became of runs."""

import json as json_format

import typer

from launcher.commands.arguments import CARE, Json, RunsFolder, example
from launcher.files import RUNS


def register(app: typer.Typer) -> None:
    """Add `status` to a command."""
    app.command(epilog=example("wsss status runs/demo"), rich_help_panel=CARE)(status)


def status(folder: RunsFolder = RUNS, json: Json = False) -> None:
    """List runs: running, finished, failed, stopped or killed; step, loss, time left, and why they ended."""
    from launcher.run.status import format_statuses, read_statuses

    found = read_statuses(folder)
    print(json_format.dumps([one.as_json() for one in found], indent=1) if json else format_statuses(found))
