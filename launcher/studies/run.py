"""Run a study's commands here."""

import os
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence

from launcher.errors import ConfigError, RunError
from launcher.processes.forward import run_below
from launcher.processes.surroundings import find_ours
from launcher.studies.plan import Command, row_commands, training_commands
from launcher.studies.table import Study


def run_study(
    study: Study,
    *,
    rows: Sequence[str] = (),
    seeds: Sequence[int] = (),
    trainings: Sequence[str] = (),
    extra: Sequence[str] = (),
    execute: Callable[[Command], None],
) -> None:
    """Run every row and seed. Each command does only what is missing.

    A run is evaluated once, as soon as everything that the rows read of it is there, so the page of a study shows what
    is finished, even if the study is still running or ended early.

    Args:
        rows, seeds: only these; () = all.
        trainings: only these, with those that they build on; then rows run only if some are named.

    Raises:
        ConfigError: no such row or training, or a seed that the study's page would not show.
        RunError: a command failed; names it.
    """
    require_seeds(study, seeds)
    if unknown := [name for name in trainings if name not in study.trainings]:
        raise ConfigError(f"there is no training '{unknown[0]}'; there are {', '.join(study.trainings)}")
    done: list[Command] = []

    def execute_once(commands: Iterable[Command]) -> None:
        for command in commands:
            if command not in done:
                execute(command)
                done.append(command)

    for name in trainings:
        for seed in seeds or study.seeds:
            execute_once(training_commands(study, name, seed, extra))
    chosen = [study.row(name) for name in rows] or ([] if trainings else study.rows)
    of_rows = [row_commands(study, row, seed, extra) for row in chosen for seed in seeds or study.seeds]
    last = {run: number for number, (*_, (_, run)) in enumerate(of_rows)}
    for number, (*makes, evaluates) in enumerate(of_rows):
        execute_once(makes)
        if last[evaluates[1]] == number:
            execute(evaluates)


def require_seeds(study: Study, seeds: Sequence[int]) -> None:
    """Raise ConfigError for a seed that the study's page would not show."""
    if others := sorted({*seeds} - {*study.seeds}):
        raise ConfigError(f"--seed {others[0]}: the study has the seeds {', '.join(map(str, study.seeds))}")


def execute_here(command: Command) -> None:
    """Run one `wsss` command as its own process. Raises RunError if it fails."""
    print("wsss " + shlex.join(command), flush=True)
    if code := run_below([sys.executable, "-m", "launcher", *command], {**os.environ, **find_ours()}):
        raise RunError(f"`wsss {shlex.join(command)}` ended with code {code}; fix it and run the study again")
