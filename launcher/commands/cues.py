"""`wsss cues sam|clip|concept|walk`: what these refiners need besides the scores; one command for each line of CUES,
and one for each cue that an installed package offers.

On several GPUs: `accelerate launch --num_processes N -m launcher.commands.cues sam|clip|concept|walk ...`.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer

from launcher.commands.arguments import MASKS, example
from launcher.commands.offered import GroupWithOffers, with_options
from launcher.errors import report_user_errors
from launcher.jobs.cues import CUES
from launcher.jobs.cues.cue import Cue
from launcher.jobs.cues.shards import write_cues
from shards.remote import place_of

Shards = Annotated[str, typer.Argument(help="Folder or URL of the image shards of one split.")]
Out = Annotated[
    str, typer.Option(help="Output folder, or URL such as s3://bucket/cues; each split becomes a folder in it.")
]


def command_of(kind: str, cue: type[Cue]) -> Callable[..., None]:
    """A command with the fields of a cue as its options; its default for --out is cues/KIND."""

    def compute(shards: str, out: str, **settings: Any) -> None:
        print(f"cues: {write_cues(kind, shards, place_of(out), **settings)}")

    hints = get_type_hints(cue, include_extras=True)
    options = {
        field.name: (hints[field.name], ... if field.default is dataclasses.MISSING else field.default)
        for field in dataclasses.fields(cue)
    }
    return with_options(compute, {"shards": (Shards, ...), **options, "out": (Out, f"cues/{kind}")}, cue.__doc__)


class CueGroup(GroupWithOffers):
    registry = CUES
    command_of = staticmethod(command_of)


def build_cues() -> typer.Typer:
    """A command with one subcommand for every kind of cue."""
    cues = typer.Typer(
        cls=CueGroup,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
        help="Compute what a refiner needs besides the scores, once per split.",
    )
    for kind, cue in CUES.ours.items():
        lines = [example(f"wsss cues {kind} data/smoke/val {options}") for options in cue.examples]
        cues.command(kind, epilog="\n\n".join(lines))(command_of(kind, cue))
    return cues


def register(app: typer.Typer) -> None:
    """Add `cues KIND` for every kind of cue to a command."""
    app.add_typer(build_cues(), name="cues", rich_help_panel=MASKS)


if __name__ == "__main__":
    with report_user_errors():
        build_cues()()
