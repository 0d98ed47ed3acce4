"""The `wsss` command. Each subcommand is one short call into a room; heavy imports wait until one is chosen."""

import typer

from launcher.commands import (
    bench,
    cues,
    evaluate,
    export,
    infer,
    refine,
    replay,
    report,
    segment,
    shards,
    study,
    track,
    train,
    trajectory,
)

# In the order in which a user works, which is that of `wsss --help`.
COMMANDS = (
    shards,
    train,
    infer,
    cues,
    refine,
    segment,
    evaluate,
    report,
    study,
    trajectory,
    replay,
    export,
    track,
    bench,
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Weakly supervised semantic segmentation from image-level labels.",
)
for command in COMMANDS:
    command.register(app)


def main() -> None:
    """Run the command; an error that the user can fix is one line, without a traceback."""
    from launcher.errors import report_user_errors

    with report_user_errors():
        app()


if __name__ == "__main__":
    main()
