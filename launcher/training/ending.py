"""What a training prints at its end: what it wrote, its main metric next to its teacher's, and the next command."""

from collections.abc import Mapping

from launcher.config.whole import Config
from launcher.evaluation.figures import FIGURES
from launcher.evaluation.formats import format_percent
from launcher.evaluation.judge import LABELS, name_logged
from launcher.files import typed
from launcher.progress import format_duration
from launcher.run import steps
from launcher.run.folder import Run, run_folder
from launcher.run.log import LOG
from wsss.methods import METHODS


def describe_end(config: Config, seconds: float, teacher: Run | None) -> str:
    """The final lines of a training that made its last step, from its folder and that of its teacher, if it has one."""
    run = run_folder(config)
    last = steps.folder_of(run, config.train.steps)
    lines = [f"done in {format_duration(seconds)}: {last}; metrics in metrics.jsonl, this text in {LOG}"]
    figures = steps.read_figures(last)
    if name := find_logged(config, figures):
        cut = name.split("/")[1] in config.cam.kinds and name.split("/")[1] != "seg"  # not labels, not an argmax
        at = " at the fixed threshold" if cut else ""
        lines.append(f"{say_logged(name, figures)}{at}{say_teacher(teacher, config)}")
    return "\n".join([*lines, f"next: {name_next(config)}"])


def find_logged(config: Config, figures: Mapping[str, float | None]) -> str:
    """The log's name of the metric to quote; "" if there is none."""
    kinds = ("seg", *config.cam.kinds, LABELS)
    names = [name_logged(kind, name) for kind in kinds for name, figure in FIGURES.items() if figure.leads]
    return next((name for name in names if figures.get(name) is not None), "")


def say_logged(name: str, figures: Mapping[str, float | None]) -> str:
    """A figure of the log in percent, with the kind of map that it is of."""
    *kind, figure = name.split("/")[1:]
    return " ".join([*kind, FIGURES[figure].heading, format_percent(figures[name]), "%"])


def say_teacher(teacher: Run | None, config: Config) -> str:
    """The same for the teacher, as its own training ended; "" if there is none, or if it was evaluated on other
    images."""
    if teacher is None or teacher.config.data.val != config.data.val:
        return ""
    figures = steps.read_figures(steps.folder_of(teacher.folder, teacher.config.train.steps))
    name = find_logged(teacher.config, figures)
    return f"; its teacher {say_logged(name, figures)}" if name else ""


def name_next(config: Config) -> str:
    """The command to run next on what was trained."""
    run, method, data = run_folder(config), METHODS[config.method.name], config.data
    if method.segments or "seg" in config.cam.kinds:
        split = "val" if data.val else "tune" if data.tune else "train"
        return typed("segment", run, *(["--split", split] if split != "val" else []))
    if not method.gives_maps:
        return typed("cues", "walk", data.val or data.train, "--run", run)
    return typed("infer", run, *([] if data.val or data.tune else ["--split", "train"]))
