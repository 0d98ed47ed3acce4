"""The numbers of a study's rows: means over seeds, intervals, differences to the control."""

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
    """One dict per row: its metric over the seeds in [0, 1], the paper's number, and where they come from. `compared`
    names the threshold choice that is compared with the control: tuned if there is one, else fixed."""
    control = study.row(study.control) if study.control else None
    return [tabulate_row(study, row, control) for row in study.rows]


def tabulate_row(study: Study, row: Row, control: Row | None) -> dict[str, Any]:
    """What is known about one row so far. A training that exists with only one seed counts once.

    Raises:
        RunError: a seed's run is a copy of another, see require_own_run, or was evaluated on other images.
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
    """evaluation.json of the run that a row reads, if it has the row's source."""
    path = run_of(study, row.run, seed) / EVALUATION
    if not path.is_file():
        return None
    evaluation = read_json(path)
    return evaluation if row.source in evaluation["sources"] else None


def require_own_run(study: Study, row: Row, seed: int) -> None:
    """Raise RunError unless the run of a row and seed was trained under its name and with its seed: otherwise a copy of
    another seed's run would count as a seed."""
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
    """The fingerprint of the images that an evaluation counted."""
    return str(evaluation["dataset"]["fingerprint"])


def judged_apart(study: Study, row: Row, found: Mapping[int, Mapping[str, Any]], control: Row | None) -> bool:
    """Whether a row and the control were evaluated on different images, so that their difference means nothing."""
    if control is None:
        return False
    theirs = {images_of(one) for seed in study.seeds if (one := read_evaluation(study, control, seed))}
    return bool(theirs) and any(images_of(one) not in theirs for one in found.values())


def name_protocols(row: Row, found: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """The protocol of a row, without the training seed; several, each with its seeds, if its runs differ."""
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
    """The classes of every data set on which finished rows of the study were evaluated."""
    evaluations = [read_evaluation(study, row, seed) for row in study.rows for seed in study.seeds]
    return [evaluation["dataset"]["classes"] for evaluation in evaluations if evaluation]


def collect_figure(found: Mapping[int, Mapping[str, Any]], row: Row, choice: str, figure: str) -> list[Any]:
    """A metric of a row's source in [0, 1] for each seed that has it, see read_figure."""
    values = (read_figure(evaluation, row, choice, figure) for evaluation in found.values())
    return [value for value in values if value is not None]


def read_figure(evaluation: Mapping[str, Any], row: Row, choice: str, figure: str) -> Any:
    """A metric of a row's source, at a threshold or of the source as a whole; None if there is none."""
    figures = evaluation["sources"][row.source]
    return (figures[choice] or {}).get(figure, figures.get(figure) if choice == "fixed" else None)


def value_of_seed(evaluation: Mapping[str, Any], row: Row, choice: str) -> dict[str, Any]:
    """{value: the row's metric, at: its threshold or None, alarms: the false-alarm area or None, classes: {name: IoU},
    {} if there is only one} of one seed, in [0, 1]; {} without the metric."""
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
    """95 % bootstrap interval over groups: for a metric per image, of its average over the seeds; for other metrics,
    the mean ends of the intervals in each seed's evaluation."""
    stated = [ends for ends in collect_figure(found, row, choice, f"{row.figure}_interval") if None not in ends]
    if not get_figure(row.figure).per_image:
        return tuple(np.mean(np.array(stated), axis=0).tolist()) if stated else None
    images = average_seeds(study, row, sorted(found), choice)
    if not images:
        return None
    groups, values = zip(*images.values(), strict=True)
    return bootstrap_interval(np.array(values), groups)


def count_groups(study: Study, row: Row, found: dict[int, Any], choice: str) -> int | None:
    """Number of groups behind the interval, the smallest if it is a mean of intervals; None if not known."""
    if get_figure(row.figure).per_image:
        return len({group for group, _ in average_seeds(study, row, sorted(found), choice).values()}) or None
    return min(collect_figure(found, row, choice, f"{row.figure}_groups"), default=None)


def compare_with_control(study: Study, row: Row, control: Row | None, choice: str) -> tuple[float, float, float] | None:
    """Mean difference to the control row on the same images and seeds, and the low and high end of its interval over
    groups.

    None for the control itself, for a metric that is neither mIoU nor a mean over images, and if nothing can be
    compared yet.
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
    """The sums behind a row's mIoU of a seed; for label maps, which have no threshold, the fixed ones."""
    return read_class_sums(run_of(study, row.run, seed), row.source, "fixed" if row.segments is not None else choice)


def compare_seeds(
    study: Study, row: Row, found: Mapping[int, dict[str, Any]], control: Row | None, choice: str
) -> dict[int, float]:
    """{seed: difference to the control's run of that seed} of a metric that is not a mean over images, such as mIoU; {}
    for other metrics, for the control itself, and if nothing can be compared yet."""
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
