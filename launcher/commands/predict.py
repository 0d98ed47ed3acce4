"""`wsss predict`."""

from pathlib import Path
from typing import Annotated

import typer

from launcher.commands.arguments import MASKS, Overwrite, example
from launcher.files import place_run, require_here

FAILED = 3  # exit code where something could not be read and the rest is done


def register(app: typer.Typer) -> None:
    """Add `predict` to a command."""
    line = "wsss predict frames/ clip.mp4 --model runs/demo/student --out predictions"
    app.command(epilog=example(line), rich_help_panel=MASKS)(predict)


def predict(
    source: Annotated[
        list[str], typer.Argument(help="Images, clips, folders, globs or lists; - reads a list from stdin.")
    ],
    model: Annotated[
        Path, typer.Option(help="A run such as runs/demo/student, or a file of `wsss export`.", callback=place_run)
    ],
    out: Annotated[Path, typer.Option(help="Output folder.", callback=require_here)],
    kind: Annotated[str | None, typer.Option(help="Kind of map. Default: that of the evaluation's headline.")] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Threshold of the scores. Default: the tuned one, else evaluate.threshold.")
    ] = None,
    gate: Annotated[
        float | None,
        typer.Option(help="Do not draw classes with a lower probability. Default: 0.5; 0 if the network segments."),
    ] = None,
    view: Annotated[str, typer.Option(help="How the network sees a frame: auto, squash, windows or whole.")] = "auto",
    scale: Annotated[
        float | None, typer.Option(help="Scale of frames that are not squashed. Default: that of training.")
    ] = None,
    refine: Annotated[str, typer.Option(help="Refiner: none or crf.")] = "none",
    ignore: Annotated[
        Path | None,
        typer.Option(help="Image that is black where the frame counts; the rest is ignored.", callback=require_here),
    ] = None,
    every: Annotated[str | None, typer.Option(help="For clips: use one frame every 2s, 0.5s ...")] = None,
    normalise: Annotated[
        str | None,
        typer.Option(
            help="For clips: normalise maps over the whole clip (clip, the default) or for each frame (frame)."
        ),
    ] = None,
    smooth: Annotated[str | None, typer.Option(help="For clips: average maps over 2s, 0.5s ...")] = None,
    heat: Annotated[bool, typer.Option("--heat", help="Also write the maps over the frames, to OUT/heat.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    batch_size: Annotated[int | None, typer.Option(help="Number of frames, or windows, at a time.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Predict masks of new images and clips: masks, overlays, a table and a contact sheet."""
    from launcher.predict.run import predict as predict_sources
    from launcher.predict.settings import Wishes, seconds_of

    wishes = Wishes(
        kind=kind,
        threshold=threshold,
        gate=gate,
        view=view,
        scale=scale,
        refine=refine,
        normalise=normalise,
        ignore=ignore,
        every_s=None if every is None else seconds_of("--every", every),
        smooth_s=None if smooth is None else seconds_of("--smooth", smooth),
        heat=heat,
        batch_size=batch_size,
    )
    done = predict_sources(source, model, out, wishes, device=device, overwrite=overwrite)
    print(f"{done.words}\nlook at {out / 'contact_sheet.html'}; also masks, overlays, frames.csv, summary.json there")
    if done.failures:
        print(f"{len(done.failures)} could not be read: {out / 'failed.csv'}")
        raise typer.Exit(FAILED)
