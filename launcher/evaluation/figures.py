"""The figures of an evaluation as one table: how each is called, what it says, which way is better, where it is shown.

A new figure is an entry here, and the place that computes it. Figures are stored in [0, 1] and shown in percent.
"""

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from wsss.metrics.base import METRICS, Metric

AREA = "_area"  # ends the name of the figure of a region, such as chimney_area
GATED = "_gated"  # ends the name of its twin that predicts nothing where the classifier sees nothing


@dataclass(frozen=True, kw_only=True)
class Figure:
    """How a figure is shown.

    Attributes:
        heading: of its column.
        meaning: in one sentence. `{one}` in it and in `absent` is the class of a data set that has one.
        absent: why it may not exist.
        higher_is_better: its direction.
        leads: it answers "how good" and is plotted over the steps of training; that of maps has an interval
            NAME_interval, drawn from NAME_groups groups.
        headline: among the few that a line of training, the closing table and the report's first table show.
        in_training: logged by validation.
        measured_on: scores of one class, label maps of several, or image labels.
        per_image: the mean of what per_image.csv states of every image, so runs are compared image by image.
    """

    heading: str
    meaning: str
    absent: str = ""
    higher_is_better: bool = True
    leads: bool = False
    headline: bool = False
    in_training: bool = False
    measured_on: Literal["scores", "label maps", "image labels"] = "scores"
    per_image: bool = False


FIGURES: dict[str, Figure] = {
    "per_image_iou": Figure(
        heading="per-image IoU",
        meaning="mean over the images with {one} of the IoU of {one}: the smoke paper's mIoU",
        absent="no image shows {one}",
        leads=True,
        headline=True,
        in_training=True,
        per_image=True,
    ),
    "per_image_iou_gated": Figure(
        heading="per-image IoU, gated",
        meaning="the same, predicting nothing where the classifier sees no {one} (p < 0.5)",
        absent="no image shows {one}",
    ),
    "miou": Figure(
        heading="mIoU",
        meaning="mean IoU over the classes that the truth holds, background included, by one confusion matrix",
        absent="the truth holds no pixel",
        leads=True,
        headline=True,
        in_training=True,
        measured_on="label maps",
    ),
    "f1": Figure(
        heading="label F1",
        meaning="mean over the images of the F1 between the classes with a positive logit and the image label",
        absent="no image label names a class",
        headline=True,
        in_training=True,
        measured_on="image labels",
    ),
    "pixel_accuracy": Figure(
        heading="pixel accuracy",
        meaning="share of the pixels with the right class",
        absent="the truth holds no pixel",
        measured_on="label maps",
    ),
    "mean_accuracy": Figure(
        heading="mean accuracy",
        meaning="mean recall over the classes that the truth holds",
        absent="the truth holds no pixel",
        measured_on="label maps",
    ),
    "pooled_iou": Figure(
        heading="pooled IoU",
        meaning="IoU of {one}, the pixels pooled over all images",
        absent="no image shows {one}",
        in_training=True,
    ),
    "fg_bg_miou": Figure(
        heading="fg/bg mIoU",
        meaning="mean of the pooled IoU of {one} and of the background",
        absent="no image shows {one}",
    ),
    "precision": Figure(
        heading="precision",
        meaning="share of the predicted pixels that are {one}, pooled",
        absent="nothing is predicted, or no image shows {one}",
        in_training=True,
    ),
    "recall": Figure(
        heading="recall",
        meaning="share of the pixels of {one} that are predicted, pooled",
        absent="no image shows {one}",
        in_training=True,
    ),
    "false_alarm_area": Figure(
        heading="false-alarm area",
        meaning="mean share of the image that is predicted, over the images without {one}",
        absent="no image without {one}",
        higher_is_better=False,
        headline=True,
        in_training=True,
    ),
    "false_alarm_area_gated": Figure(
        heading="false-alarm area, gated",
        meaning="the same, predicting nothing where the classifier sees no {one} (p < 0.5)",
        absent="no image without {one}",
        higher_is_better=False,
    ),
    "average_precision": Figure(
        heading="average precision",
        meaning="of the class probability over images; of several classes the mean over those that a label names",
        absent="no image shows {one}",
        leads=True,
        headline=True,
        in_training=True,
        measured_on="image labels",
    ),
    "class_f1": Figure(
        heading="class F1",
        meaning="F1 of the images in which {one} is seen (p >= 0.5); of several classes the mean over those in a label",
        absent="no image shows {one}",
        in_training=True,
        measured_on="image labels",
    ),
    "accuracy": Figure(
        heading="image accuracy",
        meaning="share of the images with all classes right (p >= 0.5)",
        in_training=True,
        measured_on="image labels",
    ),
    "calibration_error": Figure(
        heading="calibration error",
        meaning="how far class probabilities are from the share that is right, over ten parts of [0, 1]",
        higher_is_better=False,
        in_training=True,
        measured_on="image labels",
    ),
    "best_on_val": Figure(
        heading="best on val",
        meaning="per-image IoU at the threshold that is best on the validation split itself: a bound, not a result",
        absent="no image shows {one}",
    ),
    "oracle_per_image_iou": Figure(
        heading="oracle",
        meaning="per-image IoU, each image at its own best threshold: a bound, not a result",
        absent="no image shows {one}",
    ),
}


def region_figure(region: str, *, gated: bool) -> Figure:
    """The figure NAME_area of named boxes of the truth, such as chimneys, in which the class is predicted wrongly, or
    its gated twin NAME_area_gated."""
    name = region.replace("_", " ")
    if gated:
        return Figure(
            heading=f"{name} area, gated",
            meaning="the same, predicting nothing where the classifier sees no {one} (p < 0.5)",
            absent=f"no image has a {name} box over background",
            higher_is_better=False,
        )
    return Figure(
        heading=f"{name} area",
        meaning=f"mean share of the pixels of {name} boxes predicted to be {{one}}, over the images with such a box",
        absent=f"no image has a {name} box over background",
        higher_is_better=False,
        headline=True,
        in_training=True,
    )


def offered_figure(metric: type[Metric]) -> Figure:
    """The figure of a package's metric."""
    return Figure(
        heading=metric.heading,
        meaning=metric.meaning.replace("{", "{{").replace("}", "}}"),
        absent="it has no value for these images",
        higher_is_better=metric.higher_is_better,
        headline=True,
        in_training=True,
        measured_on="label maps",
    )


def is_ours(name: str) -> bool:
    """Whether a figure of this name is in the table, or of a region."""
    return name in FIGURES or name.removesuffix(GATED).endswith(AREA)


def find_figure(name: str) -> Figure | None:
    """The figure of this name, be it in the table, of a region or of a package; None if there is none."""
    if name in FIGURES:
        return FIGURES[name]
    if is_ours(name):
        area = name.removesuffix(GATED)
        return region_figure(area.removesuffix(AREA), gated=area != name)
    return offered_figure(METRICS[name]) if name in METRICS else None


def get_figure(name: str) -> Figure:
    """The figure of this name. Raises ValueError if there is none."""
    figure = find_figure(name)
    if figure is None:
        raise ValueError(f"there is no metric '{name}'; {hint_at(name, list(FIGURES))}")
    return figure


def hint_at(wanted: str, known: Sequence[str]) -> str:
    """The names that a wrong one is like; all of them if it is like none."""
    return f"nearest are {', '.join(difflib.get_close_matches(wanted, known, n=3, cutoff=0.4) or known)}"


def order_figures(names: Iterable[str]) -> dict[str, Figure]:
    """{name: figure} of those that are figures, in the order of the table, areas of regions after the false alarms,
    those of packages last."""
    found = {name: figure for name in sorted(set(names)) if (figure := find_figure(name))}
    order = list(FIGURES)
    after = order.index("false_alarm_area_gated")

    def place(name: str) -> float:
        return order.index(name) if name in FIGURES else after + 0.5 if is_ours(name) else len(order)

    return {name: found[name] for name in sorted(found, key=place)}


def list_logged_figures(measured_on: str) -> list[str]:
    """Those that validation logs and that should be high."""
    return [
        name
        for name, figure in FIGURES.items()
        if figure.measured_on == measured_on and figure.in_training and figure.higher_is_better
    ]


def without_nan(value: Any) -> Any:
    """The value, or what is in its lists and dicts, with None for NaN: a figure that does not exist."""
    if isinstance(value, dict):
        return {name: without_nan(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def require_known(wanted: str, known: Sequence[str], where: str) -> None:
    """Raises ValueError unless a figure is among those that validation gives, and one that should be high.

    Args:
        wanted, known: as they are logged, such as val/class_map/miou.
        where: the config's key.
    """
    figure = find_figure(wanted.split("/")[-1])
    if figure is not None and not figure.higher_is_better:
        raise ValueError(
            f"{where} names '{wanted}', for which lower is better; choose a metric for which higher is better"
        )
    if wanted not in known:
        raise ValueError(f"{where}: evaluation gives no metric '{wanted}'; {hint_at(wanted, known)}")
