"""Which rows of the studies must run, and how the commands of the others are compared with theirs.

Two rows have one make-up if they differ in numbers alone: their networks and methods, the options of these that are
words, switches, null or zero, the kind of CAM, the refiners and the reading are the same.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from launcher.config.file import load_config
from launcher.config.options import Named
from launcher.config.whole import Config
from launcher.studies.plan import Command, row_commands, training_overrides
from launcher.studies.table import Row, Study, load_study

Rows = dict[str, list[Row]]
study_of = cache(load_study)


@cache
def split_rows(names: tuple[str, ...]) -> tuple[Rows, dict[tuple[str, str], tuple[str, str]]]:
    """Rows of these studies by what they add; cached, since every config of every row is loaded.

    Returns:
        {study: rows that run: the first of each make-up}, and
        {(study, row) of the others: (study, row) of the same make-up that runs}.
    """
    first: dict[Any, tuple[str, str]] = {}
    running: Rows = {name: [] for name in names}
    others = {}
    for name in names:
        study = study_of(name)
        for row in study.rows:
            made_up = make_up_of_row(study, row)
            if made_up in first:
                others[name, row.name] = first[made_up]
            else:
                first[made_up] = (name, row.name)
                running[name].append(row)
    return running, others


def rows_that_run(name: str, names: tuple[str, ...]) -> list[str]:
    """The rows of one of these studies that add something; each other one has the make-up of a row that runs."""
    running, others = split_rows(names)
    chosen = [row.name for row in running[name]]
    assert {row.name for row in study_of(name).rows} == {*chosen, *(row for of, row in others if of == name)}
    return chosen


def make_up_of_row(study: Study, row: Row) -> Any:
    cams = row.cams and tuple(keys_of(row.cams.overrides))
    masks = row.masks and (words_of_overrides(row.masks.overrides), options_of_cues(row.masks.cues))
    segments = row.segments and tuple(keys_of(row.segments.overrides))
    return make_up_of_training(study, row.run), row.kind, cams, masks, segments


def make_up_of_training(study: Study, name: str) -> Any:
    training = study.trainings[name]
    config = config_of(study, name)
    return (
        words_of(config.model),
        words_of(config.method),
        config.partner and words_of(config.partner),
        config.data.pixel is not None,
        training.teacher and make_up_of_training(study, training.teacher),
        training.masks is not None,
    )


def config_of(study: Study, name: str) -> Config:
    return load_config(Path(study.trainings[name].config), training_overrides(study, name, study.seeds[0]))


def words_of(named: Named) -> Any:
    """The name and the options that choose what is computed."""
    options = {key: value for key, value in named.options.items() if key not in ("weights", "timm_name")}
    chosen = {key: value for key, value in options.items() if isinstance(value, str | bool) or not value}
    return named.name, *sorted((key, str(value)) for key, value in chosen.items())


def keys_of(overrides: tuple[str, ...]) -> list[str]:
    return sorted(override.partition("=")[0] for override in overrides)


def options_of_cues(cues: Mapping[str, tuple[str, ...]]) -> Any:
    """The kinds of cues with the names of their options."""
    return tuple((kind, *(option for option in options if option.startswith("--"))) for kind, options in cues.items())


def words_of_overrides(overrides: tuple[str, ...]) -> Any:
    """Overrides of a chain of refiners without their numbers."""
    return tuple("".join(c for c in override if not c.isdigit()) for override in sorted(overrides))


def shape_of(command: Command) -> list[str]:
    """A command without its values: kind, config and the names of options and overrides, `--option` or `key=`."""
    kind, *arguments = command
    named = {argument.partition("=")[0] for argument in arguments if argument.startswith("--") or "=" in argument}
    return [kind, *sorted(name for name in named if not name.startswith(("method.", "model.", "train.", "data.")))]


@cache
def shapes_of(study: str, row: str) -> list[list[str]]:
    loaded = study_of(study)
    return [shape_of(command) for command in row_commands(loaded, loaded.row(row), loaded.seeds[0])]
