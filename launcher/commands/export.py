"""`wsss export`: the trained student of a run as one file, whatever it was trained with."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from launcher.commands.arguments import CARE, RunFolder, example
from launcher.files import require_here


class Format(str, Enum):
    safetensors = "safetensors"
    torch = "torch"
    onnx = "onnx"


def register(app: typer.Typer) -> None:
    """Add `export` to a command."""
    line = "wsss export runs/demo/student --out student.onnx --kind project"
    app.command(epilog=example(line), rich_help_panel=CARE)(export)


def export(
    run: RunFolder,
    out: Annotated[
        Path,
        typer.Option(help="File to write: .safetensors, .pt2 or .onnx. With --hub: a folder.", callback=require_here),
    ],
    form: Annotated[
        Format | None,
        typer.Option("--format", help="Weights, a graph of torch.export, or ONNX. Default: from the ending of --out."),
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="Kind of map that the file gives by default. Default: as in `wsss predict`.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", help="Licence of the weights. Default: a note on where they come from.")
    ] = None,
    hub: Annotated[
        str | None, typer.Option(help="OWNER/NAME: write a folder with a model card, ready to upload.")
    ] = None,
) -> None:
    """Export the student of a run's newest checkpoint as one file that can predict, without teacher and optimizer."""
    from launcher.predict.card import write_folder
    from launcher.predict.export import export as export_run

    chosen = None if form is None else form.value
    if hub is None:
        written = export_run(run, out, chosen, kind=kind, licence=licence)
    else:
        written = write_folder(run, out, hub, chosen, kind=kind, licence=licence)
    print(f"{written.path}: the student of {run}{written.words}")
    print(f"licence: {written.facts['licence']}")
    if hub is not None:
        print(f"read {out / 'README.md'}, then: hf upload {hub} {out}")
