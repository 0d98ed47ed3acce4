"""`wsss evaluate`."""

import typer

from launcher.commands.arguments import FIGURES, Overrides, RunFolder, example


def register(app: typer.Typer) -> None:
    """Add `evaluate` to a command."""
    app.command(epilog=example("wsss evaluate runs/demo/student"), rich_help_panel=FIGURES)(evaluate)


def evaluate(run: RunFolder, overrides: Overrides = None) -> None:
    """Figures of all CAMs and masks on the validation split, thresholds chosen on `tune`.

    Where data was moved, say so: data.val=FOLDER data.tune=FOLDER.
    """
    from launcher.evaluation.evaluate import evaluate as evaluate_run
    from launcher.evaluation.table import format_evaluation
    from launcher.evaluation.track import track

    report = evaluate_run(run, overrides or [])
    print(format_evaluation(report))
    track(run, report)
