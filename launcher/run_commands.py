"""`wsss replay`: what one looks at when a run went wrong."""

from pathlib import Path
from typing import Annotated

import typer

from launcher.sources import example


def register(app: typer.Typer) -> None:
    app.command(epilog=example("wsss replay runs/demo/student --step 120"))(replay)


def replay(
    run: Annotated[Path, typer.Argument(help="Folder of a run, such as runs/demo/student.")],
    step: Annotated[int, typer.Option(min=1, help="As messages and metrics.jsonl count: the first step is 1.")],
    rank: Annotated[int | None, typer.Option(min=0, help="Only what this rank saw. Default: all ranks.")] = None,
) -> None:
    """Run one step of a run again, without saving: losses, gradients, samples, and where the first NaN comes from."""
    from launcher.build import load_about
    from launcher.replay import arguments_for, replay_here
    from launcher.topology import launch

    settings, processes = arguments_for(load_about(run))
    if rank is not None and rank >= processes:
        raise typer.BadParameter(f"the run has {processes} processes, ranks 0 to {processes - 1}", param_hint="--rank")
    if processes == 1:
        replay_here(run, step)
    elif code := launch(settings, "launcher.replay", [str(run), str(step), "all" if rank is None else str(rank)]):
        raise typer.Exit(code)
