"""A study's YAML: the rows of a paper's table as runs.

A study names trainings, and rows, each of which reads a training in one way. For one seed, a row is a list of `wsss`
commands, each of which does only what is missing, so a study can be stopped and run again, and rows, tables and
machines can share its runs.
"""

from pathlib import Path

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from launcher.config.file import YamlLoader
from launcher.config.options import Section, explain_problem
from launcher.errors import ConfigError
from launcher.evaluation.figures import get_figure
from launcher.files import find_shipped, list_shipped


class Training(Section):
    """A run to train: a config, overrides, and the trainings of this study that it builds on.

    Attributes:
        seeds: null = one run per seed of the study; else the existing seeds, of which the first replaces missing ones.
        teacher: training whose run becomes `teacher`.
        masks: [training, source]: the refined masks of that source, in that run, become `data.masks`.
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
    """One row of the table.

    Attributes:
        paper: the paper's number in percent; null if there is none.
        run: the training that is read.
        kind: kind of CAM that is measured; `seg` for a segmentation network.
        segments: label maps that `wsss segment` makes instead; kind is then `seg`, `cam` or `aux_cam`.
        figure: name of a metric, see evaluation.figures.
        note: what a reader should know about this row.
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

    @field_validator("figure")
    @classmethod
    def _figure_exists(cls, figure: str) -> str:
        get_figure(figure)
        return figure

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
        folder: folder of its runs below runs/; tables that share trainings share a folder.
        control: row that all others are compared with.
        overrides: of every training of the study.
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
            raise ValueError(f"two rows have the same name: {sorted(n for n in set(names) if names.count(n) > 1)}")
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
    """{name: file} of the studies in ./configs/studies and of those that ship."""
    return {path.stem: path for path in list_shipped("studies/*").values()}


def load_study(name: str) -> Study:
    """A study by name or path.

    Raises:
        ConfigError: no such study, or a file that is not one; says what is wrong and where.
    """
    path = find_shipped(name) if name.endswith(".yaml") else studies().get(name)
    if path is None or not path.is_file():
        raise ConfigError(f"there is no study '{name}'; there are {', '.join(studies())}")
    try:
        return Study.model_validate(yaml.load(path.read_text(), YamlLoader), strict=False)
    except ValidationError as error:
        raise ConfigError(
            "\n".join(f"{path}: {explain_problem(problem, Study)}" for problem in error.errors())
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
