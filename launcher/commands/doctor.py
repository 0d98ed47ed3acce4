"""`wsss doctor`."""

import json as json_format
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from launcher.commands.arguments import CARE, Json, Overrides, example
from launcher.files import require_here


def register(app: typer.Typer) -> None:
    """Add `doctor` to a command."""
    app.command(epilog=example("wsss doctor configs/demo/teacher.yaml"), rich_help_panel=CARE)(doctor)


def doctor(
    config: Annotated[
        Path | None,
        typer.Argument(metavar="[CONFIG]", help="Also check what this config needs.", callback=require_here),
    ] = None,
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Check this machine for what would stop a run, and say what to do. Exit code 1 if a check fails."""
    from launcher.doctor import machine, places
    from launcher.doctor.config import checks_of
    from launcher.doctor.finding import format_findings, run_checks

    checks = [
        *(machine.python, machine.packages, machine.devices, machine.cores, machine.shared_memory),
        *(machine.open_files, machine.compiler, machine.environment),
        *(places.runs_folder, places.outputs, places.mlflow, places.port, places.two_processes),
        *(checks_of(config, overrides or []) if config is not None else []),
    ]
    found = run_checks(checks)
    print(json_format.dumps([asdict(one) for one in found], indent=1) if json else format_findings(found))
    if any(finding.state == "fail" for finding in found):
        raise typer.Exit(1)
