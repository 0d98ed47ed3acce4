"""The rows of a paper's table as runs: one YAML per table, one command per step, one page beside the paper's column.

A study names trainings, and rows that read a training in one way. A row of one seed is a list of `wsss` commands, each
of which does only what is missing, so a study may be stopped, run again, and shared by rows, tables and machines.
"""

import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import yaml
from pydantic import Field, ValidationError, model_validator

from launcher.config_file import YamlLoader, load_config
from launcher.errors import ConfigError, RunError
from launcher.options import Section, describe
from launcher.tracking import RUNS

STUDIES = Path("configs/studies")
Command = list[str]


class Training(Section):
    """A run to train: a config, what is overridden in it, and the trainings of this study that it builds on.

    Attributes:
        seeds: null = one run per seed of the study; otherwise the seeds that exist, and the first serves those missing.
        teacher: training whose run becomes `teacher`.
        masks: [training, masks]: the masks below that run's masks/ folder that become `data.masks`.
    """

    config: str
    overrides: tuple[str, ...] = ()
    seeds: tuple[int, ...] | None = None
    teacher: str | None = None
    masks: tuple[str, str] | None = None


class Cams(Section):
    """A further set of CAMs: `wsss infer --name NAME OVERRIDES`."""

    name: str
    overrides: tuple[str, ...]


class Masks(Section):
    """Refined masks: `wsss refine --name NAME OVERRIDES`. `cues` are arguments of `wsss cues KIND` by refiner."""

    name: str
    overrides: tuple[str, ...]
    cues: dict[str, tuple[str, ...]] = Field(default_factory=dict)


class Segments(Section):
    """Masks by the network's own segmentation: `wsss segment --cams --name NAME OVERRIDES`."""

    name: str
    overrides: tuple[str, ...] = ()


class Row(Section):
    """One figure of the table.

    Attributes:
        paper: what the paper states, in percent; null where it states none or the row is not the paper's.
        run: the training that is read.
        kind: of CAM that the figure is read from; `seg` for a segmentation network.
        segments: label maps that `wsss segment` makes instead; kind is then `seg`, `cam` or `aux_cam`.
        figure: key of an evaluation's figures.
        note: what a reader should know of this row.
    """

    name: str
    paper: float | None = None
    run: str
    kind: str = "grad"
    cams: Cams | None = None
    masks: Masks | None = None
    segments: Segments | None = None
    figure: str = "per_image_iou"
    note: str = ""

    @property
    def source(self) -> str:
        """Name of the source in an evaluation."""
        if self.segments:
            return f"segments@{self.segments.name}{'' if self.kind == 'seg' else '.' + self.kind}"
        kind = f"{self.kind}@{self.cams.name}" if self.cams else self.kind
        return f"{kind}+{self.masks.name}" if self.masks else kind


class Study(Section):
    """A table.

    Attributes:
        folder: where its runs are below runs/; tables that share trainings share a folder.
        control: row that all others are compared with.
        overrides: for every training of the study.
    """

    title: str
    folder: str
    protocol: str
    seeds: tuple[int, ...] = (0, 1, 2)
    control: str | None = None
    overrides: tuple[str, ...] = ()
    trainings: dict[str, Training]
    rows: tuple[Row, ...]

    @model_validator(mode="after")
    def _names_exist(self) -> "Study":
        names = [row.name for row in self.rows]
        if len(set(names)) < len(names):
            raise ValueError(f"two rows have one name: {sorted(n for n in set(names) if names.count(n) > 1)}")
        if self.control is not None and self.control not in names:
            raise ValueError(f"control: there is no row '{self.control}'; there are {names}")
        wanted = [(f"row '{row.name}'", row.run) for row in self.rows]
        for name, training in self.trainings.items():
            wanted += [(f"training '{name}'", n) for n in (training.teacher, *(training.masks or ())[:1]) if n]
        for where, name in wanted:
            if name not in self.trainings:
                raise ValueError(f"{where}: there is no training '{name}'; there are {sorted(self.trainings)}")
        return self

    def row(self, name: str) -> Row:
        found = [row for row in self.rows if row.name == name]
        if not found:
            raise ConfigError(f"there is no row '{name}'; there are {', '.join(row.name for row in self.rows)}")
        return found[0]


def studies() -> dict[str, Path]:
    """{name: file} of the studies that ship with the project."""
    return {path.stem: path for path in sorted(STUDIES.glob("*.yaml"))}


def load_study(name: str) -> Study:
    """A study by name or path.

    Raises:
        ConfigError: no such study, or not one; says what is wrong and where.
    """
    path = Path(name) if name.endswith(".yaml") else studies().get(name)
    if path is None or not path.is_file():
        raise ConfigError(f"there is no study '{name}'; there are {', '.join(studies()) or 'none here'}")
    try:
        return Study.model_validate(yaml.load(path.read_text(), YamlLoader), strict=False)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{path}: {describe(problem, Study)}" for problem in error.errors())) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error


def run_of(study: Study, training: str, seed: int) -> Path:
    """The run's folder of a training for a seed: the training's first seed serves those that it does not have."""
    seeds = study.trainings[training].seeds
    return RUNS / study.folder / f"{training}_seed{seed if seeds is None or seed in seeds else seeds[0]}"


def training_commands(study: Study, name: str, seed: int, extra: Sequence[str] = ()) -> Iterator[Command]:
    """Train a run, after everything that it builds on."""
    training = study.trainings[name]
    run = run_of(study, name, seed)
    needs: list[str] = []
    if training.teacher:
        yield from training_commands(study, training.teacher, seed, extra)
        needs.append(f"teacher={run_of(study, training.teacher, seed)}")
    if training.masks:
        source, masks = training.masks
        yield from mask_commands(study, source, masks, seed, extra)
        needs.append(f"data.masks={run_of(study, source, seed) / 'masks' / masks / 'train'}")
    own_seed = run.name.rpartition("_seed")[2]
    names = [f"name={run.relative_to(RUNS)}", f"train.seed={own_seed}"]
    yield ["train", training.config, *names, *needs, *study.overrides, *training.overrides, *extra]


def mask_commands(study: Study, training: str, masks: str, seed: int, extra: Sequence[str]) -> Iterator[Command]:
    """The masks of the training split that another training learns from: those of the row that makes them."""
    rows = [row for row in study.rows if row.run == training and row.source == masks]
    if not rows:
        raise ConfigError(f"masks: no row reads '{masks}' of training '{training}', so nobody says how they are made")
    yield from reading_commands(study, rows[0], seed, extra, splits=("train",))


def reading_commands(
    study: Study, row: Row, seed: int, extra: Sequence[str], splits: Sequence[str] = ("val", "tune")
) -> Iterator[Command]:
    """Train, infer and refine what a row reads."""
    yield from training_commands(study, row.run, seed, extra)
    run = run_of(study, row.run, seed)
    if row.segments:
        yield ["segment", str(run), "--cams", "--name", row.segments.name, *row.segments.overrides]
        return
    for split in splits:
        cams = ["--name", row.cams.name, *row.cams.overrides] if row.cams else []
        yield ["infer", str(run), "--split", split, *cams]
        if row.masks is None:
            continue
        settings = [f"refine.cams=[{row.kind}]", *row.masks.overrides]
        for refiner, arguments in row.masks.cues.items():
            folder = RUNS / study.folder / "cues" / f"{refiner}_{row.masks.name}"
            source = [shards_of(study, row.run, seed, split, extra), *arguments]
            if refiner == "walk":  # its cues come from a training of this study
                yield from training_commands(study, arguments[0], seed, extra)
                trained = run_of(study, arguments[0], seed)
                folder, source = trained / "cues", [source[0], "--run", str(trained)]
            yield ["cues", refiner, *source, "--out", str(folder)]
            settings.append(f"refine.cues.{refiner}={folder}")
        of_set = ["--cams", row.cams.name] if row.cams else []
        yield ["refine", str(run), "--split", split, "--name", row.masks.name, *of_set, *settings]


def shards_of(study: Study, training: str, seed: int, split: str, extra: Sequence[str]) -> str:
    """The image shards of a split of a training."""
    *_, (_, config, *overrides) = training_commands(study, training, seed, extra)
    return str(getattr(load_config(Path(config), overrides).data, split))


def row_commands(study: Study, row: Row, seed: int, extra: Sequence[str] = ()) -> list[Command]:
    """All commands of a row and seed, each once, in order."""
    commands = [*reading_commands(study, row, seed, extra), ["evaluate", str(run_of(study, row.run, seed))]]
    return [command for n, command in enumerate(commands) if command not in commands[:n]]


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
        RunError: a command failed; names it.
    """
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


def execute_here(command: Command) -> None:
    """Run one `wsss` command as its own process."""
    print("wsss " + shlex.join(command), flush=True)
    code = subprocess.run([sys.executable, "-m", "launcher", *command]).returncode
    if code:
        raise RunError(f"`wsss {shlex.join(command)}` ended with {code}; mend it and run the study again")


def slurm_array(name: str, study: Study, rows: Sequence[str], seeds: Sequence[int], extra: Sequence[str]) -> str:
    """An sbatch script with one array task per row and seed. Add your partition and GPUs.

    Rows that share a training must not run at once, so the tasks of a training are one task.
    """
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


def check(study: Study) -> None:
    """Load the config of every training with its overrides, so that a typing mistake is found before the first run."""
    for name, training in study.trainings.items():
        folder = run_of(study, name, study.seeds[0])
        overrides = [f"name={folder.relative_to(RUNS)}", *study.overrides, *training.overrides]
        overrides += [f"teacher={folder}"] if training.teacher else []
        overrides += [f"data.masks={folder}"] if training.masks else []
        load_config(Path(training.config), overrides)
