"""A study on Slurm: a script that submits its trainings as job arrays, in the order of their dependencies."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from launcher.studies.plan import builds_on, seed_of
from launcher.studies.run import require_seeds
from launcher.studies.table import Study

SCRIPT = """\
#!/bin/bash
# {title}
# Submit it with any options of sbatch:  bash THIS_FILE --partition=NAME --account=NAME --time=24:00:00
# Run it in the folder with data/ and runs/, in the environment of `wsss`. Run again, it does only what is missing.
set -euo pipefail
submit() {{
  sbatch --parsable --job-name={name} --gpus=1 --cpus-per-task=16 --requeue --open-mode=append \\
    --signal=B:USR1@180 --output=slurm-%A_%a.log "$@"
}}
{stages}
echo "submitted: {jobs}"
"""
STAGE = """\
stage{number}=$(submit {after}"$@" --array=0-{last} <<'END'
#!/bin/bash
tasks=(
{tasks}
)
# Three minutes before its time is over, a task stops (a training with a checkpoint) and is queued again.
over=
trap 'over=yes; kill -TERM "$task"' USR1
eval "exec ${{tasks[$SLURM_ARRAY_TASK_ID]}}" &
task=$!
code=0
wait "$task" || code=$?
if [ -n "$over" ]; then
  code=0
  wait "$task" || code=$?
  if [ $code = 143 ] && [ $SECONDS -lt 300 ]; then
    echo "stopped by its time limit after $SECONDS s, not queued again: it must be at least 10 minutes" >&2
  elif [ $code = 143 ]; then
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
  fi
fi
exit $code
END
)"""


def slurm_script(name: str, study: Study, rows: Sequence[str], seeds: Sequence[int], extra: Sequence[str]) -> str:
    """A bash script that submits one job array per stage. Each training and seed is one task, with all rows that read
    it, and runs after those that it builds on.

    Args:
        rows, seeds: only these; () = all.
        extra: further overrides of every training.

    Raises:
        ConfigError: no such row, or a seed that the study's page would not show.
    """
    require_seeds(study, seeds)
    stages: dict[int, dict[tuple[str, int], list[str]]] = {}
    asked: dict[tuple[str, int], int] = {}  # the first of the study's seeds for which a training uses a seed

    def add(training: str, seed: int) -> list[str]:
        """The list of rows of a task; adds the task, after those that it builds on, if it is new."""
        task = training, seed_of(study, training, seed)
        asked.setdefault(task, seed)
        for other in builds_on(study, training):
            add(other, seed)
        return stages.setdefault(stage_of(study, training), {}).setdefault(task, [])

    for row in [study.row(row_name) for row_name in rows] or study.rows:
        for seed in seeds or study.seeds:
            listed = add(row.run, seed)
            if row.name not in listed:
                listed.append(row.name)
    texts = []
    for number, tasks in stages.items():  # in order: dependencies were added first
        lines = [
            shlex.join(
                [
                    *("wsss", "study", "run", name, *extra),
                    *([f"--row={row}" for row in of_task] or [f"--training={task[0]}"]),
                    f"--seed={asked[task]}",
                ]
            )
            for task, of_task in tasks.items()
        ]
        after = f'--dependency="afterok:$stage{number - 1}" --kill-on-invalid-dep=yes ' if number else ""
        listed_tasks = "\n".join(f"  {shlex.quote(line)}" for line in lines)
        texts.append(STAGE.format(number=number, after=after, last=len(lines) - 1, tasks=listed_tasks))
    return SCRIPT.format(
        title=study.title,
        name=shlex.quote(Path(name).stem),
        stages="\n".join(texts),
        jobs=" ".join(f"$stage{number}" for number in stages),
    )


def stage_of(study: Study, training: str) -> int:
    """Length of the longest chain of trainings that must finish before this one."""
    return max((stage_of(study, other) + 1 for other in builds_on(study, training)), default=0)
