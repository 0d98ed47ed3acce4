"""`wsss study`."""

from pathlib import Path
from typing import Annotated

import typer

from launcher.commands.arguments import FIGURES, DryRun, Overrides, example, refuse_idle

Study = Annotated[str, typer.Argument(help="Name of a study (see `wsss study list`) or path of its YAML.")]


def register(app: typer.Typer) -> None:
    """Add `study list|run|report` to a command."""
    study = typer.Typer(no_args_is_help=True, help="Reproduce a table of a paper: run its rows, and report them.")
    study.command("list", epilog=example("wsss study list"))(study_list)
    study.command("run", epilog=example("wsss study run smoke_table_4_10 --row lambda_0 --seed 0"))(study_run)
    study.command("report", epilog=example("wsss study report smoke_table_4_10"))(study_report)
    app.add_typer(study, name="study", rich_help_panel=FIGURES)


def study_list() -> None:
    """List the studies that come with the project: the tables of the papers."""
    from launcher.studies.table import load_study, studies

    for name in studies():
        study = load_study(name)
        print(f"{name:32s} {len(study.rows):3d} rows x {len(study.seeds)} seeds  {study.title}")


def study_run(
    name: Study,
    overrides: Overrides = None,
    row: Annotated[list[str] | None, typer.Option(help="Only this row; repeatable.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Only this seed; repeatable.")] = None,
    training: Annotated[list[str] | None, typer.Option(help="Only this training; repeatable.")] = None,
    dry_run: DryRun = False,
    slurm: Annotated[
        bool, typer.Option("--slurm", help="Print a script that submits the study to Slurm; run nothing.")
    ] = False,
) -> None:
    """Train, infer, refine and evaluate what is missing in a table."""
    import shlex

    from launcher.studies.plan import check
    from launcher.studies.run import execute_here, run_study
    from launcher.studies.slurm import slurm_script
    from launcher.studies.table import load_study

    study = load_study(name)
    check(study, overrides or [])
    if slurm:
        refuse_idle("--slurm writes all that the rows need", training=training, dry_run=dry_run)
        print(slurm_script(name, study, row or [], seed or [], overrides or []), end="")
        return

    def show(command: list[str]) -> None:
        print("wsss " + shlex.join(command))

    execute = show if dry_run else execute_here
    run_study(
        study,
        rows=row or [],
        seeds=seed or [],
        trainings=training or [],
        extra=overrides or [],
        execute=execute,
    )
    if not dry_run and (row or not training):
        study_report(name)


def study_report(name: Study) -> None:
    """Write a page that compares our results, with intervals, seeds and commits, with the paper's."""
    from launcher.studies.page import format_study, write_study_report
    from launcher.studies.table import load_study

    study = load_study(name)
    page = write_study_report(name, study)
    print(format_study(Path(name).stem, study))
    print(f"report: {page}, and its numbers {page.with_suffix('.csv').name}")
