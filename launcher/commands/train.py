"""`wsss train`."""

from typing import Annotated

import typer

from launcher.commands.arguments import TRAINING, ConfigFile, DryRun, Overrides, example


def register(app: typer.Typer) -> None:
    """Add `train` to a command."""
    line = "wsss train configs/demo/teacher.yaml train.seed=1 name=demo/teacher_seed1"
    app.command(epilog=example(line), rich_help_panel=TRAINING)(train)


def train(
    config: ConfigFile,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Refuse to begin anew if there is no checkpoint.")] = False,
    dry_run: DryRun = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print the launch command.")] = False,
) -> None:
    """Train through `accelerate launch`; goes on from the last checkpoint if the run's folder exists."""
    from launcher.config.file import load_config
    from launcher.processes.accelerator import process_count
    from launcher.processes.launch import launch, show_launch
    from launcher.processes.signals import STOPPED
    from launcher.run.failure import note_exit
    from launcher.run.folder import run_folder
    from launcher.run.steps import newest_complete
    from launcher.training.inputs import preflight

    settings = load_config(config, overrides or [])
    if resume:
        newest_complete(run_folder(settings))
    processes = preflight(settings)
    arguments = [str(config), *(overrides or [])]
    if processes < process_count(settings):
        images, available = settings.data.global_batch_size, process_count(settings)
        print(f"{processes} of {available} GPUs: a batch of {images} images does not divide into more")
        arguments.append(f"launch.processes={processes}")
        settings = load_config(config, arguments[1:])
    if dry_run:
        print(show_launch(settings, "launcher.train", arguments))
        return
    code = launch(settings, "launcher.train", arguments, verbose=verbose)
    if code:
        if code != STOPPED:
            note_exit(run_folder(settings), code)
        raise typer.Exit(code)
