"""`wsss track`: send what MLflow or TensorBoard did not take while a run went on."""

import typer

from launcher.commands.arguments import CARE, RunsFolder, example


def register(app: typer.Typer) -> None:
    """Add `track sync` to a command."""
    track = typer.Typer(
        no_args_is_help=True, help="Send metrics and files that MLflow and TensorBoard did not receive."
    )
    track.callback()(lambda: None)  # one command stays a subcommand
    track.command("sync", epilog=example("wsss track sync runs/demo"))(sync)
    app.add_typer(track, name="track", rich_help_panel=CARE)


def sync(folder: RunsFolder) -> None:
    """Send MLflow and TensorBoard what they lack of these runs; nothing is sent twice."""
    from launcher.tracking.sync import sync as sync_all

    if not sync_all(folder):
        raise typer.Exit(1)
