"""`wsss train`."""

from collections.abc import Sequence
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
    resume: Annotated[
        bool, typer.Option("--resume", help="Fail if there is no checkpoint, instead of starting a new run.")
    ] = False,
    extend: Annotated[
        int | None,
        typer.Option(
            metavar="STEPS", help="Continue the run up to this number of steps; needs a constant learning rate."
        ),
    ] = None,
    fork: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Start a new run from the newest checkpoint of CONFIG's run, with changed options."
        ),
    ] = None,
    dry_run: DryRun = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print the launch command.")] = False,
) -> None:
    """Train a run, through `accelerate launch`. Resumes from the last checkpoint if the run exists. CONFIG may also be
    the folder of a run."""
    from launcher.config.file import load_config
    from launcher.files import place_run
    from launcher.processes.accelerator import process_count
    from launcher.processes.launch import launch, show_launch
    from launcher.processes.signals import STOPPED
    from launcher.run.failure import note_exit
    from launcher.run.folder import CONFIG, is_run, run_folder
    from launcher.run.steps import newest_complete
    from launcher.training.go_on import as_begun, extend_run, fork_run, require_own_name
    from launcher.training.preflight import preflight

    given = place_run(config)
    if is_run(given):
        config = given / CONFIG
    arguments = [str(config), *(overrides or []), *overrides_of(extend, fork, overrides or [])]
    settings = load_config(config, arguments[1:])
    if fork is None:
        require_own_name(given, settings)
    if resume:
        newest_complete(run_folder(settings))
    parent = None if fork is None else run_folder(load_config(config))
    if extend is not None:
        print(extend_run(settings, write=False))
    if parent is not None:
        print(fork_run(parent, settings, write=False))
    processes = preflight(settings if extend is None else as_begun(settings))
    if processes < process_count(settings):
        images = f"{settings.data.global_batch_size} images"
        images += f" and {settings.data.pixel_batch_size} with masks" if settings.data.pixel is not None else ""
        print(f"using {processes} of {process_count(settings)} GPUs: a batch of {images} cannot be divided over more")
        arguments.append(f"launch.processes={processes}")
        settings = load_config(config, arguments[1:])
    if dry_run:
        print(show_launch(settings, "launcher.train", arguments))
        return
    if extend is not None:  # now that nothing stands against it
        extend_run(settings)
    if parent is not None:
        fork_run(parent, settings)
    code = launch(settings, "launcher.train", arguments, verbose=verbose)
    if code:
        if code != STOPPED:
            note_exit(run_folder(settings), code)
        raise typer.Exit(code)


def overrides_of(extend: int | None, fork: str | None, overrides: Sequence[str]) -> list[str]:
    """--extend and --fork as overrides. Raises ConfigError if both are given, or one of them twice."""
    from launcher.errors import ConfigError

    if extend is not None and fork is not None:
        raise ConfigError(
            f"--extend {extend} --fork {fork}: give only one; for a fork with more steps add train.steps={extend}"
        )
    for option, value, key in (("--extend", extend, "train.steps"), ("--fork", fork, "name")):
        if value is not None and any(one.startswith(f"{key}=") for one in overrides):
            raise ConfigError(f"{option} {value} already sets {key}; remove that override")
    return [*([f"train.steps={extend}"] if extend is not None else []), *([f"name={fork}"] if fork is not None else [])]
