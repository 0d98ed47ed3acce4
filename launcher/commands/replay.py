"""`wsss replay`: what one looks at when a run went wrong."""

from typing import Annotated

import typer

from launcher.commands.arguments import CARE, RunFolder, example


def register(app: typer.Typer) -> None:
    """Add `replay` to a command."""
    app.command(epilog=example("wsss replay runs/demo/student --step 120"), rich_help_panel=CARE)(replay)


def replay(
    run: RunFolder,
    step: Annotated[
        int, typer.Option(min=1, help="Number of the step, as in messages and metrics.jsonl: the first one is 1.")
    ],
    rank: Annotated[int | None, typer.Option(min=0, help="Report only this rank. Default: all ranks.")] = None,
) -> None:
    """Compute one step of a run again, without saving: losses, gradients, samples, and the origin of the first NaN."""
    from launcher.processes.launch import run_or_launch
    from launcher.run.folder import Run
    from launcher.training.replay import read_settings, replay_here

    settings, processes = read_settings(Run(run))
    if rank is not None and rank >= processes:
        raise typer.BadParameter(f"the run has {processes} processes, ranks 0 to {processes - 1}", param_hint="--rank")
    run_or_launch(settings, "launcher.training.replay", replay_here, {"run": run, "step": step, "rank": rank})
