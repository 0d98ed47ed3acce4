"""Run a study's commands here, or write them as a Slurm array."""

import os
import shlex
import sys
from collections.abc import Callable, Sequence

from launcher.errors import ConfigError, RunError
from launcher.processes.forward import run_below
from launcher.processes.surroundings import find_ours
from launcher.studies.plan import Command, row_commands
from launcher.studies.table import Study


def run_study(
    study: Study,
    *,
    rows: Sequence[str] = (),
    seeds: Sequence[int] = (),
    extra: Sequence[str] = (),
    execute: Callable[[Command], None],
) -> None:
    """Run every row and seed. Each command does only what is missing.

    Evaluation comes once per run, after all that its rows read of it is there.

    Raises:
        ConfigError: no such row, or a seed that the study's page would not show.
        RunError: a command failed; names it.
    """
    require_seeds(study, seeds)
    done: list[Command] = []
    last: dict[str, Command] = {}
    for row in [study.row(name) for name in rows] or study.rows:
        for seed in seeds or study.seeds:
            *makes, evaluates = row_commands(study, row, seed, extra)
            for command in makes:
                if command not in done:
                    execute(command)
                    done.append(command)
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
        raise RunError(f"`wsss {shlex.join(command)}` ended with {code}; fix it and run the study again")


def slurm_array(name: str, study: Study, rows: Sequence[str], seeds: Sequence[int], extra: Sequence[str]) -> str:
    """An sbatch script with one array task per row and seed. Add your partition and GPUs.

    Rows that share a training must not run at once, so the tasks of a training are one task.
    """
    require_seeds(study, seeds)
    tasks: dict[tuple[str, int], list[str]] = {}
    for row in [study.row(row_name) for row_name in rows] or study.rows:
        for seed in seeds or study.seeds:
            tasks.setdefault((row.run, seed), []).append(row.name)
    lines = [
        shlex.join(["wsss", "study", "run", name, *extra, *(f"--row={row}" for row in of_run), f"--seed={s}"])
        for (_, s), of_run in tasks.items()
    ]
    listed = "\n".join(f"  {shlex.quote(line)}" for line in lines)
    return (
        f"#!/bin/bash\n#SBATCH --job-name={name}\n#SBATCH --array=0-{len(lines) - 1}\n#SBATCH --gpus=1\n"
        "# Trainings that others build on (teachers) must be there before: run their rows first.\n"
        f'tasks=(\n{listed}\n)\neval "${{tasks[$SLURM_ARRAY_TASK_ID]}}"\n'
    )
