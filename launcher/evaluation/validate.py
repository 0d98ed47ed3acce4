"""Validation during training: the ranks share the images of the split; rank 0 joins their counts and logs them."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object

from launcher.config.whole import Config
from launcher.errors import ConfigError, user_error_as
from launcher.evaluation.figures import FIGURES, is_ours, order_figures, require_known
from launcher.evaluation.formats import format_figure, format_percent, name_class
from launcher.evaluation.galleries import choose_gallery, keep_gallery
from launcher.evaluation.judge import LABELS, Figures, Judge, Part, name_logged
from launcher.evaluation.judge_labels import LabelJudge
from launcher.evaluation.judge_masks import MaskJudge
from launcher.evaluation.judge_scores import ScoreJudge
from launcher.evaluation.pictures import lay_out_gallery
from launcher.progress import fit_words, say
from launcher.run.folder import run_folder
from launcher.tracking.protocol import Tracker
from launcher.tracking.tracker import read_metrics
from shards.folder import ShardFolder
from shards.schema import ClassSet, Supervision
from wsss.methods import METHODS
from wsss.methods.base import Method


def choose_judge(
    method: Method | type[Method], supervision: Supervision
) -> type[MaskJudge] | type[ScoreJudge] | type[LabelJudge]:
    """A method that segments is judged by its masks, any other by the scores of its CAMs; if the validation split has
    no masks, all are judged by image labels."""
    if supervision == "label":
        return LabelJudge
    return MaskJudge if method.segments else ScoreJudge


def make_validator(
    judge: Judge, config: Config, shards: ShardFolder, accelerator: Accelerator, tracker: Tracker
) -> Callable[[int], dict[str, float | None]]:
    """step -> log the metrics and the gallery. All ranks must call it; rank 0 gets {name in the log: value}, the others
    {}. A metric that does not exist is None and not logged.

    Each rank judges every ranks-th sample once; rank 0 joins the counts. Before the last step, only a part of the split
    may be judged (data.val_part); the pictures are of the same images at every step.
    """
    drawn, one = choose_gallery(shards, config.evaluate.gallery), name_class([shards.index.classes])
    before: dict[str, float] = {}
    rank, ranks = accelerator.process_index, accelerator.num_processes

    def validate(step: int) -> dict[str, float | None]:
        started = time.perf_counter()
        numbers = choose_part(len(shards), config.data.val_part if step < config.train.steps else None)
        part: Part = judge.judge(numbers[rank::ranks], drawn)
        if uncounted := sorted(drawn - set(numbers))[rank::ranks]:
            part.rows.update(judge.judge(uncounted, drawn).rows)
        for other in gather_object([part])[1:] if ranks > 1 else []:
            part.extend(other)
        found: dict[str, float | None] = {}
        if accelerator.is_main_process:
            figures = part.figures()
            found = {name_logged(kind, name): value for kind in figures for name, value in figures[kind].items()}
            logged = {name: value for name, value in found.items() if value is not None}
            seconds = time.perf_counter() - started
            tracker.log({**logged, "val/seconds": seconds}, step)
            if part.rows:
                picture = lay_out_gallery([part.rows[number] for number in sorted(part.rows)], shards.index.classes)
                if judge.keeps_gallery:
                    keep_gallery(picture, run_folder(config))
                tracker.image("gallery", picture, step)
            words = say_headlines(judge.quoted, figures, before or read_before(run_folder(config), step), one)
            say(f"step {step}: {fit_words([*words, f'{len(numbers)} images in {seconds:.1f} s'])}")
            before.update(logged)
        accelerator.wait_for_everyone()
        return found

    return validate


def show_untrained(
    judge: Judge, config: Config, shards: ShardFolder, accelerator: Accelerator, tracker: Tracker
) -> None:
    """Log the gallery before the first step, to show at once if images, truth or maps are wrong. All ranks must call
    it."""
    if not (drawn := choose_gallery(shards, config.evaluate.gallery)):
        return
    rank, ranks = accelerator.process_index, accelerator.num_processes
    part = judge.judge(sorted(drawn)[rank::ranks], drawn)
    gathered = gather_object([part]) if ranks > 1 else [part]
    rows = {number: row for one in gathered for number, row in one.rows.items()}
    if accelerator.is_main_process and rows:
        tracker.image("gallery", lay_out_gallery([rows[number] for number in sorted(rows)], shards.index.classes), 0)
    accelerator.wait_for_everyone()


def headline_names(judge: Judge, figures_of: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """{name in the log: name without the kind of map} of the headline metrics of validation: those of the first quoted
    kind of map, then those of the image labels. The first answers how good the run is.

    Args:
        figures_of: {kind of map, or LABELS: metrics}, see Judge.known_figures.
    """
    low = [name for name, figure in FIGURES.items() if figure.headline and not figure.higher_is_better]
    found = {}
    for kind in (*judge.quoted[:1], LABELS):
        for name, figure in order_figures([*figures_of.get(kind, ()), *(low if kind else ())]).items():
            if figure.headline:
                found[name_logged(kind, name)] = name_logged(LABELS, name)
    return found


def choose_part(images: int, part: int | None) -> list[int]:
    """`part` evenly spaced numbers of 0..images-1, so that every group and class has its share; None = all."""
    if part is None or part >= images:
        return list(range(images))
    return [number * images // part for number in range(part)]


def say_headlines(quoted: Sequence[str], figures: Figures, before: Mapping[str, float], one: str) -> list[str]:
    """Each metric that answers "how good", or that a package offers, in percent, with its change since the previous
    validation; if it does not exist, why, and the other headline metrics."""
    words = []
    for kind in (*quoted, LABELS):
        of_kind = order_figures(figures.get(kind, {}))
        lacking = any(figure.leads and figures[kind][name] is None for name, figure in of_kind.items())
        for name, figure in of_kind.items():
            if figure.leads or not is_ours(name) or (figure.headline and lacking):
                value, last = figures[kind][name], before.get(name_logged(kind, name))
                change = "" if value is None or last is None else f" ({format_percent(value - last, signed=True)})"
                words.append(f"{kind} {format_figure(figure, value, one, unit=' %')}{change}".strip())
    return words


def read_before(run: Path, step: int) -> dict[str, float]:
    """{name: value} of the last validation before a step, from the log of the run; {} if there was none."""
    lines = [line for line in read_metrics(run) if line["step"] < step and "val/seconds" in line]
    return dict(lines[-1]) if lines else {}


def check_keep_best(config: Config, class_set: ClassSet, val: ShardFolder | None) -> None:
    """Raise ConfigError if validation does not give the metric that train.keep_best names, if lower is better for it,
    or if no image of the validation split shows a class."""
    if config.train.keep_best is None:
        return
    if val is not None and not val.image_label_NK.any():
        raise ConfigError(
            f"train.keep_best: no image of {val.folder} shows {name_class([class_set.classes])}, so no metric says "
            "which checkpoint is best; choose another split for data.val or leave train.keep_best out"
        )
    supervision: Supervision = "pixel" if val is None else val.index.supervision
    of_kinds = choose_judge(METHODS[config.method.name], supervision).known_figures(config, class_set)
    known = [name_logged(kind, name) for kind, names in of_kinds.items() for name in names]
    with user_error_as(ConfigError):
        require_known(config.train.keep_best, known, "train.keep_best")
