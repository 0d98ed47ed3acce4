"""`wsss evaluate`."""

from typing import Annotated

import typer

from launcher.commands.arguments import FIGURES, Overrides, RunFolder, example
from launcher.files import typed


def register(app: typer.Typer) -> None:
    """Add `evaluate` to a command."""
    app.command(epilog=example("wsss evaluate runs/demo/student"), rich_help_panel=FIGURES)(evaluate)


def evaluate(
    run: RunFolder,
    overrides: Overrides = None,
    every: Annotated[bool, typer.Option("--all", help="Print the rows of every CAM and mask.")] = False,
) -> None:
    """Measure all CAMs and masks on the validation split, with thresholds chosen on `tune`.

    If the data was moved, pass data.val=FOLDER data.tune=FOLDER.
    """
    from launcher.evaluation.evaluate import evaluate as evaluate_run
    from launcher.evaluation.formats import name_class
    from launcher.evaluation.headline import Headline, describe_headline
    from launcher.evaluation.table import format_evaluation
    from launcher.evaluation.track import track
    from launcher.jobs.shares import is_first
    from launcher.run.folder import Run
    from launcher.studies.beside import find_known

    if not is_first("evaluate", Run(run, overrides or []).config.launch):
        return
    report = evaluate_run(run, overrides or [])
    headline = Headline(run, report, **report["headline"])
    print(format_evaluation(report, every=every))
    print(describe_headline(headline, name_class([report["dataset"]["classes"]]), find_known(headline)))
    print(f"metrics: {run}/evaluation.json, per_image.csv\nnext: {typed('report', run)}")
    track(run, report)
