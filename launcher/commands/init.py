"""`wsss init`."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from launcher.commands.arguments import TRAINING, example
from launcher.files import require_here


class Start(str, Enum):
    demo = "demo"
    frames = "frames"
    classes = "classes"
    voc = "voc"
    coco = "coco"


def register(app: typer.Typer) -> None:
    """Add `init` to a command."""
    app.command(epilog=example("wsss init my_smoke --from frames"), rich_help_panel=TRAINING)(init)


def init(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder that gets the files; it may be there.", callback=require_here)
    ],
    start: Annotated[
        Start,
        typer.Option(
            "--from", help="Synthetic scenes, own frames of smoke, own classes, PASCAL VOC 2012 or MS COCO 2014."
        ),
    ] = Start.demo,
) -> None:
    """Commented configs to begin with, and a note on how their data are made."""
    from launcher.config.project import write_project

    for path in write_project(folder, start.value):
        print(path)
    print(f"next: cd {folder}, and read its note on data")
