"""The commands of a study's rows: train, make masks, evaluate."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from launcher.config.file import load_config
from launcher.errors import ConfigError
from launcher.files import RUNS
from launcher.jobs.cues import find_cue
from launcher.jobs.segment_images import CAM_KINDS
from launcher.studies.table import Row, Study

Command = list[str]


def seed_of(study: Study, training: str, seed: int) -> int:
    """The seed of a training for one of the study's seeds: its first one replaces those that it does not have."""
    seeds = study.trainings[training].seeds
    return seed if seeds is None or seed in seeds else seeds[0]


def run_of(study: Study, training: str, seed: int) -> Path:
    """The run's folder of a training for a seed."""
    return RUNS / study.folder / f"{training}_seed{seed_of(study, training, seed)}"


def training_overrides(study: Study, name: str, seed: int, extra: Sequence[str] = ()) -> list[str]:
    """The overrides of a training's config: name, seed, the runs it builds on, the study's overrides and its own."""
    training = study.trainings[name]
    overrides = [f"name={run_of(study, name, seed).relative_to(RUNS)}", f"train.seed={seed_of(study, name, seed)}"]
    if training.teacher:
        overrides.append(f"teacher={run_of(study, training.teacher, seed)}")
    if training.masks:
        source, masks = training.masks
        overrides.append(f"data.masks={run_of(study, source, seed) / 'masks' / masks / 'train'}")
    return [*overrides, *study.overrides, *training.overrides, *extra]


def builds_on(study: Study, training: str) -> list[str]:
    """The trainings that must be finished before this one: its teacher, and the source of its masks."""
    one = study.trainings[training]
    return [name for name in (one.teacher, *(one.masks or ())[:1]) if name]


def training_commands(study: Study, name: str, seed: int, extra: Sequence[str]) -> Iterator[Command]:
    """Train a run, after everything that it builds on."""
    training = study.trainings[name]
    if training.teacher:
        yield from training_commands(study, training.teacher, seed, extra)
    if training.masks:
        source, masks = training.masks
        yield from mask_commands(study, source, masks, seed, extra)
    yield ["train", training.config, *training_overrides(study, name, seed, extra)]


def mask_commands(study: Study, training: str, masks: str, seed: int, extra: Sequence[str]) -> Iterator[Command]:
    """Make masks of the training split for another training to learn from, as the row with these masks makes them."""
    rows = [row for row in study.rows if row.run == training and row.source == masks]
    if not rows:
        raise ConfigError(
            f"no row of this study uses masks '{masks}' of training '{training}', so it is undefined how to make them; "
            "add a row"
        )
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
            if option := find_cue(refiner).option_of_run:  # these cues come from a training of this study
                yield from training_commands(study, arguments[0], seed, extra)
                trained = run_of(study, arguments[0], seed)
                folder, source = trained / "cues", [source[0], option, str(trained)]
            yield ["cues", refiner, *source, "--out", str(folder)]
            settings.append(f"refine.cues.{refiner}={folder}")
        of_set = ["--cams", row.cams.name] if row.cams else []
        yield ["refine", str(run), "--split", split, "--name", row.masks.name, *of_set, *settings]


def shards_of(study: Study, training: str, seed: int, split: str, extra: Sequence[str]) -> str:
    """The image shards of a split of a training."""
    config = load_config(Path(study.trainings[training].config), training_overrides(study, training, seed, extra))
    return str(getattr(config.data, split))


def row_commands(study: Study, row: Row, seed: int, extra: Sequence[str] = ()) -> list[Command]:
    """All commands of a row and seed, each once, in order."""
    commands = [*reading_commands(study, row, seed, extra), ["evaluate", str(run_of(study, row.run, seed))]]
    return [command for n, command in enumerate(commands) if command not in commands[:n]]


def check(study: Study, extra: Sequence[str] = ()) -> None:
    """Load the config of every training with its overrides, and check that it makes the kinds of map that rows read, so
    that a mistake is found before the first run.

    Args:
        extra: further overrides of every training.

    Raises:
        ConfigError: a config or override that does not load, or a row with a kind that nothing makes.
    """
    kinds = {name: cam_kinds(study, name, extra, f"trainings.{name}") for name in study.trainings}
    for row in study.rows:
        where = f"row '{row.name}'"
        if row.segments:
            if row.kind not in ("seg", *CAM_KINDS):
                wanted = f"label maps are {', '.join(('seg', *CAM_KINDS))}"
                raise ConfigError(f"study '{study.title}': {where}: kind '{row.kind}': {wanted}")
            continue
        made = cam_kinds(study, row.run, [*extra, *row.cams.overrides], where) if row.cams else kinds[row.run]
        if row.kind not in made:
            raise ConfigError(
                f"study '{study.title}': {where}: kind '{row.kind}': its training '{row.run}' has the maps "
                f"{', '.join(made)} (cam.kinds); name one; a label map of `wsss segment` needs `segments`"
            )


def cam_kinds(study: Study, training: str, extra: Sequence[str], where: str) -> tuple[str, ...]:
    """The kinds of map that a training's config makes; raises ConfigError, which says where, if it does not load."""
    try:
        config = load_config(
            Path(study.trainings[training].config), training_overrides(study, training, study.seeds[0], extra)
        )
    except ConfigError as error:
        raise ConfigError(f"study '{study.title}': {where}: {error}") from error
    return tuple(config.cam.kinds)
