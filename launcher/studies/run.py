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

    Evaluation comes once per run, after all that its rows read of it is there.

    Args:
        rows, seeds: only these; () = all.
        trainings: these alone, with what they build on; rows then only where some are named.

    Raises:
        ConfigError: no such row or training, or a seed that the study's page would not show.
        RunError: a command failed; names it.
    """
    require_seeds(study, seeds)
    if unknown := [name for name in trainings if name not in study.trainings]:
        raise ConfigError(f"there is no training '{unknown[0]}'; there are {', '.join(study.trainings)}")
    done: list[Command] = []
    last: dict[str, Command] = {}

    def execute_once(commands: Iterable[Command]) -> None:
        for command in commands:
            if command not in done:
                execute(command)
                done.append(command)

    for name in trainings:
        for seed in seeds or study.seeds:
            execute_once(training_commands(study, name, seed, extra))
    for row in [study.row(name) for name in rows] or ([] if trainings else study.rows):
        for seed in seeds or study.seeds:
            *makes, evaluates = row_commands(study, row, seed, extra)
            execute_once(makes)
            last[evaluates[1]] = evaluates
    for command in last.values():
        execute(command)


def require_seeds(study: Study, seeds: Sequence[int]) -> None:
    """Raise ConfigError for a seed that the study's page would not show."""
    if others := sorted({*seeds} - {*study.seeds}):
        raise ConfigError(f"--seed {others[0]}: the study has the seeds {', '.join(map(str, study.seeds))}")


def execute_here(command: Command) -> None:
    """Run one `wsss` command as its own process. Raises RunError if it fails."""
    print("wsss " + shlex.join(command), flush=True)
    if code := run_below([sys.executable, "-m", "launcher", *command], {**os.environ, **find_ours()}):
        raise RunError(f"`wsss {shlex.join(command)}` ended with code {code}; fix it and run the study again")
