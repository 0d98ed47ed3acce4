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
        Path, typer.Argument(metavar="DIR", help="Folder for the files; it may exist.", callback=require_here)
    ],
    start: Annotated[
        Start,
        typer.Option(
            "--from", help="Synthetic scenes, your own smoke frames, your own classes, PASCAL VOC 2012 or MS COCO 2014."
        ),
    ] = Start.demo,
) -> None:
    """Write commented configs to start from, and a note on how to make their data."""
    from launcher.config.project import write_project

    for path in write_project(folder, start.value):
        print(path)
    print(f"next: cd {folder}, and read its note on data")
