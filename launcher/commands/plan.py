"""`wsss plan`: what a run will cost, before anything runs."""

from typing import Annotated

import typer

from launcher.commands.arguments import TRAINING, ConfigFile, Overrides, example


def register(app: typer.Typer) -> None:
    """Add `plan` to a command."""
    line = "wsss plan voc/msee_vitb --gpu a100 --price 1.5"
    app.command(epilog=example(line), rich_help_panel=TRAINING)(plan)


def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    gpu: Annotated[
        str | None, typer.Option(help="h100 (default), h200, a100, a100-80, l40s, a10, 4090, 3090 or t4.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Number of GPUs. Default: launch.processes, or one.")
    ] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Price of one GPU per hour.")] = None,
    measure: Annotated[
        int | None, typer.Option(min=0, help="Number of steps to time on this machine. Default: 30 on a GPU, else 0.")
    ] = None,
) -> None:
    """Estimate FLOPs, memory, time, disk and price of a run; needs no data. Exit code 3 if it does not fit."""
    from launcher.config.file import load_config
    from launcher.plan.estimate import make_plan
    from launcher.plan.gpus import find_gpu, measured_here
    from launcher.plan.text import format_plan

    settings = load_config(config, overrides or [])
    found = make_plan(settings, find_gpu(gpu), processes=processes, price=price)
    steps = (30 if measured_here(gpu) else 0) if measure is None else measure
    if steps:
        from launcher.plan.measure import measure as probe

        probe(found, settings, steps)
    print(format_plan(found))
    if not found.fits:
        raise typer.Exit(3)
