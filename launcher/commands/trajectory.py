"""`wsss trajectory`."""

from enum import Enum
from typing import Annotated

import typer

from launcher.commands.arguments import FIGURES, RunFolder, example


class DataSet(str, Enum):
    voc = "voc"
    coco = "coco"


def register(app: typer.Typer) -> None:
    """Add `trajectory` to a command."""
    line = "wsss trajectory runs/voc/toco_vitb --beside voc"
    app.command(epilog=example(line), rich_help_panel=FIGURES)(trajectory)


def trajectory(
    run: RunFolder, beside: Annotated[DataSet, typer.Option(help="Which of ToCo's logs to compare with.")] = DataSet.voc
) -> None:
    """Compare a run's losses and mIoU with ToCo's published training log, at the same steps."""
    from launcher.studies.trajectory import format_trajectory, write_trajectory

    print(format_trajectory(run, beside.value))
    print(f"page: {write_trajectory(run, beside.value)}")
