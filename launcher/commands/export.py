"""`wsss export`: the trained student of a run as one plain safetensors file, whatever it was trained with."""

from pathlib import Path
from typing import Annotated

import typer

from launcher.commands.arguments import CARE, RunFolder, example


def register(app: typer.Typer) -> None:
    """Add `export` to a command."""
    line = "wsss export runs/demo/student --out student.safetensors"
    app.command(epilog=example(line), rich_help_panel=CARE)(export)


def export(
    run: RunFolder,
    out: Annotated[Path, typer.Option(help="The file to write.")],
) -> None:
    """The student of a run's newest checkpoint as one safetensors file: no teacher, no projections, no optimizer."""
    from launcher.run.export import write_student

    print(f"{write_student(run, out)}: the student of {run}")
