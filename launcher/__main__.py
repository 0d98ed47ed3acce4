"""The `wsss` command. Each subcommand is one short call into a room, and imports heavy packages only when it runs."""

import os
import sys
from typing import Annotated, Any

import typer
import typer.core

from launcher.commands import (
    bench,
    cues,
    doctor,
    evaluate,
    export,
    infer,
    init,
    plan,
    predict,
    refine,
    replay,
    report,
    segment,
    shards,
    status,
    study,
    track,
    train,
    trajectory,
)
from launcher.files import RUNS, require_here
from wsss import __version__

COMMANDS = (
    *(init, shards, plan, train),
    *(infer, cues, refine, segment, predict),
    *(evaluate, report, study, trajectory),
    *(doctor, status, replay, export, track, bench),
)
ORDER = [  # in `wsss --help`: the order in which a user works
    *("init", "shards", "plan", "train"),
    *("infer", "cues", "refine", "segment", "pack-voc", "predict"),
    *("evaluate", "report", "study", "trajectory"),
    *("doctor", "status", "replay", "export", "track", "bench"),
]


# Their results are in files, so losing their output is not a failure.
WORK = {"init", "train", "infer", "cues", "refine", "segment", "predict", "evaluate", "report", "study"}


class InOrderOfWork(typer.core.TyperGroup):
    """Lists commands and groups of commands in one order; Typer would list all groups after the commands."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=ORDER.index)


app = typer.Typer(
    cls=InOrderOfWork,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Weakly supervised semantic segmentation from image-level labels.",
)
for command in COMMANDS:
    command.register(app)


def show_version(asked: bool) -> None:
    if asked:
        print(f"wsss {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options before a subcommand."""
    require_here(RUNS)


def main() -> None:
    """Run the command; an error that the user can fix is one line, without a traceback."""
    from launcher.errors import report_user_errors
    from launcher.interrupts import ending_in_time
    from launcher.processes.group import forget_group
    from launcher.processes.surroundings import require_ours, without_accelerate
    from launcher.streams import lost_output

    for name in set(os.environ) - set(without_accelerate(os.environ)):
        del os.environ[name]  # the config decides instead
    with ending_in_time(), report_user_errors():
        require_ours()
        if found := forget_group():
            print(f"ignoring {', '.join(found)}: wsss commands start their own processes", file=sys.stderr)
        try:
            app()
        except SystemExit as end:
            error = lost_output()
            if end.code or not error or set(sys.argv[1:2]) & WORK:
                raise
            print(f"error: this command's output could not be written: {error}", file=sys.stderr)
            sys.exit(1)


if __name__ == "__main__":
    main()
