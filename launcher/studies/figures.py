"""The figures of a study's rows: means over seeds, intervals, differences to the control."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from launcher.errors import RunError
from launcher.evaluation.class_sums import GroupSums, compare_mious, read_class_sums
from launcher.evaluation.figures import get_figure
from launcher.evaluation.per_image import compare_images, read_ious
from launcher.files import RUNS, read_json
from launcher.run.folder import EVALUATION, Run
from launcher.studies.plan import run_of, seed_of
from launcher.studies.table import Row, Study
from wsss.metrics.counts import bootstrap_interval

CHOICES = ("fixed", "tuned")


def tabulate_study(study: Study) -> list[dict[str, Any]]:
    """One dict per row: the figures over its seeds in [0, 1], the paper's, and where they come from. What a row was
    tuned at is `compared` with the control, else what it is at the fixed threshold."""
    control = study.row(study.control) if study.control else None
    return [tabulate_row(study, row, control) for row in study.rows]


def tabulate_row(study: Study, row: Row, control: Row | None) -> dict[str, Any]:
    """What is known of one row so far. A training that has one seed alone counts once.

    Raises:
        RunError: the run of a seed is another run's, see require_own_run, or was evaluated on other images.
    """
    seeds = dict.fromkeys(seed_of(study, row.run, seed) for seed in study.seeds)
    found = {seed: evaluation for seed in seeds if (evaluation := read_evaluation(study, row, seed))}
    for seed in found:
        require_own_run(study, row, seed)
    require_same_images(study, row, found)
    of_row: dict[str, Any] = {"name": row.name, "source": row.source, "note": row.note}
    of_row |= {"paper": None if row.paper is None else row.paper / 100, "figure": row.figure}
    of_row |= {"seeds": sorted(found), "run": row.run, "commits": [], "protocols": name_protocols(row, found)}
    of_row["apart"] = apart = judged_apart(study, row, found, control)
    for choice in CHOICES:
        values = collect_figure(found, row, choice, row.figure)
        alarms = collect_figure(found, row, choice, "false_alarm_area")
        of_row[choice] = {
            "mean": mean(values),
            "seeds": len(values),
            "deviation": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "false_alarm_area": mean(alarms),
            "interval": find_interval(study, row, found, choice),
            "groups": count_groups(study, row, found, choice),
            "difference": None if apart else compare_with_control(study, row, control, choice),
            "by_seed": {} if apart else compare_seeds(study, row, found, control, choice),
            "of_seed": {seed: of for seed, one in found.items() if (of := value_of_seed(one, row, choice))},
        }
    of_row["compared"] = "fixed" if of_row["tuned"]["mean"] is None else "tuned"
    if found:
        abouts = [Run(run_of(study, row.run, seed)).about for seed in found]
        of_row["commits"] = sorted({about["git_commit"][:10] for about in abouts})
    return of_row


def read_evaluation(study: Study, row: Row, seed: int) -> dict[str, Any] | None:
    """evaluation.json of the run that a row reads, if it holds the row's source."""
    path = run_of(study, row.run, seed) / EVALUATION
    if not path.is_file():
        return None
    evaluation = read_json(path)
    return evaluation if row.source in evaluation["sources"] else None


def require_own_run(study: Study, row: Row, seed: int) -> None:
    """Raises RunError unless the run of a row and seed was trained under its name and with its seed: a copy of another
    seed's run would count as a seed of its own."""
    folder = run_of(study, row.run, seed)
    run, name = Run(folder), str(folder.relative_to(RUNS))
    got, wanted = f"{run.config.name}, train.seed {run.config.train.seed}", f"{name}, train.seed {seed}"
    if got != wanted:
        raise RunError(f"{folder}: was trained as {got}; wanted {wanted}: remove this copy and train the seed itself")


def require_same_images(study: Study, row: Row, found: Mapping[int, Mapping[str, Any]]) -> None:
    """Raise RunError unless the runs of all seeds of a row were evaluated on the same images."""
    folders: dict[str, Path] = {}
    for seed, evaluation in found.items():
        folders.setdefault(images_of(evaluation), run_of(study, row.run, seed))
    if len(folders) > 1:
        said = "; ".join(f"{folder} on images of fingerprint {one}" for one, folder in folders.items())
        raise RunError(
            f"row '{row.name}': its runs were evaluated on different images ({said}): evaluate them on the same"
        )


def images_of(evaluation: Mapping[str, Any]) -> str:
    """The fingerprint of the images that an evaluation counted; "" of before it was said."""
    return str(evaluation.get("dataset", {}).get("fingerprint", ""))


def judged_apart(study: Study, row: Row, found: Mapping[int, Mapping[str, Any]], control: Row | None) -> bool:
    """Whether a row and the control were evaluated on different images, so that no difference says anything."""
    if control is None:
        return False
    theirs = {images_of(one) for seed in study.seeds if (one := read_evaluation(study, control, seed))}
    return bool(theirs) and any(images_of(one) not in theirs for one in found.values())


def name_protocols(row: Row, found: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """The protocol of a row, without the seed of its training. Several, each with its seeds, where its runs differ."""
    sources = {seed: evaluation["sources"][row.source] for seed, evaluation in found.items()}
    fixed = {seed: source["fixed"].get("threshold") for seed, source in sources.items()}
    differ = len({*fixed.values()}) > 1
    seeds_of: dict[str, list[int]] = {}
    for seed, source in sources.items():
        protocol = re.sub(r", training seed \d+", "", source["protocol"])
        protocol += f", fixed threshold {fixed[seed]}" if differ else ""
        seeds_of.setdefault(protocol, []).append(seed)
    if len(seeds_of) < 2:
        return [*seeds_of]
    return [f"{protocol} (training seed {', '.join(map(str, seeds))})" for protocol, seeds in seeds_of.items()]


def read_classes(study: Study) -> list[list[str]]:
    """The classes of every data set that a row of the study was evaluated on, as far as it is done."""
    evaluations = [read_evaluation(study, row, seed) for row in study.rows for seed in study.seeds]
    return [evaluation["dataset"].get("classes", []) for evaluation in evaluations if evaluation]


def collect_figure(found: Mapping[int, Mapping[str, Any]], row: Row, choice: str, figure: str) -> list[Any]:
    """A figure of a row's source in [0, 1] for each seed that has it, see read_figure."""
    values = (read_figure(evaluation, row, choice, figure) for evaluation in found.values())
    return [value for value in values if value is not None]


def read_figure(evaluation: Mapping[str, Any], row: Row, choice: str, figure: str) -> Any:
    """A figure of a row's source: at a threshold, or one of the source as a whole; None where it has none."""
    figures = evaluation["sources"][row.source]
    return (figures[choice] or {}).get(figure, figures.get(figure) if choice == "fixed" else None)


def value_of_seed(evaluation: Mapping[str, Any], row: Row, choice: str) -> dict[str, Any]:
    """{value: the row's figure, at: the threshold that it stands at or None, alarms: the false-alarm area or None,
    classes: {name: IoU}, {} of a single one} of one seed in [0, 1]; {} without the figure."""
    names = {"value": row.figure, "at": "threshold", "alarms": "false_alarm_area", "classes": "class_iou"}
    found = {key: read_figure(evaluation, row, choice, name) for key, name in names.items()}
    return {} if found["value"] is None else {**found, "classes": found["classes"] or {}}


def mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def average_seeds(study: Study, row: Row, seeds: list[int], choice: str) -> dict[str, tuple[str, float]]:
    """{key: (group, IoU averaged over the seeds)}."""
    found = [images for seed in seeds if (images := read_ious(run_of(study, row.run, seed), row.source, choice))]
    if not found:
        return {}
    return {key: (group, float(np.mean([images[key][1] for images in found]))) for key, (group, _) in found[0].items()}


def find_interval(study: Study, row: Row, found: dict[int, Any], choice: str) -> tuple[float, float] | None:
    """95 % bootstrap interval over groups: of a figure per image, of its average over the seeds; of other figures, the
    mean of the ends that each seed's evaluation states."""
    stated = [ends for ends in collect_figure(found, row, choice, f"{row.figure}_interval") if None not in ends]
    if not get_figure(row.figure).per_image:
        return tuple(np.mean(np.array(stated), axis=0).tolist()) if stated else None
    images = average_seeds(study, row, sorted(found), choice)
    if not images:
        return None
    groups, values = zip(*images.values(), strict=True)
    return bootstrap_interval(np.array(values), groups)


def count_groups(study: Study, row: Row, found: dict[int, Any], choice: str) -> int | None:
    """The groups that the interval is drawn from: of a mean of stated intervals, the fewest; None if nothing says."""
    if get_figure(row.figure).per_image:
        return len({group for group, _ in average_seeds(study, row, sorted(found), choice).values()}) or None
    return min(collect_figure(found, row, choice, f"{row.figure}_groups"), default=None)


def compare_with_control(study: Study, row: Row, control: Row | None, choice: str) -> tuple[float, float, float] | None:
    """Mean difference to the control row, low and high end of its interval: the same images, seeds and groups.

    None for the control itself, a figure that is neither mIoU nor a mean over images, or where nothing can be compared
    yet.
    """
    if control is None or row.name == control.name:
        return None
    seeds = [s for s in study.seeds if read_evaluation(study, row, s) and read_evaluation(study, control, s)]
    if row.figure == control.figure == "miou":
        if choice == "tuned" and row.segments is not None:
            return None
        return compare_mious(*([sums_of(study, one, seed, choice) for seed in seeds] for one in (row, control)))
    if not get_figure(row.figure).per_image:
        return None
    ours, theirs = (average_seeds(study, one, seeds, choice) for one in (row, control))
    return compare_images(ours, theirs)


def sums_of(study: Study, row: Row, seed: int, choice: str) -> GroupSums | None:
    """What a row's mIoU of a seed is made of; label maps have no threshold to tune."""
    return read_class_sums(run_of(study, row.run, seed), row.source, "fixed" if row.segments is not None else choice)


def compare_seeds(
    study: Study, row: Row, found: Mapping[int, dict[str, Any]], control: Row | None, choice: str
) -> dict[int, float]:
    """{seed: difference to the control's run of that seed} of a figure that is no mean over images, such as mIoU; {} of
    others, of the control itself, and where nothing can be compared yet."""
    if control is None or row.name == control.name or row.figure != control.figure or get_figure(row.figure).per_image:
        return {}
    gaps = {}
    for seed, evaluation in found.items():
        other = read_evaluation(study, control, seed)
        ours = collect_figure({seed: evaluation}, row, choice, row.figure)
        of_control = "fixed" if control.segments is not None else choice
        theirs = collect_figure({seed: other}, control, of_control, row.figure) if other else []
        if ours and theirs:
            gaps[seed] = ours[0] - theirs[0]
    return gaps
