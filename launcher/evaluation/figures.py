"""The table of metrics: the heading and meaning of each, whether higher is better, and where it is shown.

A new metric is an entry here and code that computes it. Metrics are stored in [0, 1] and shown in percent.
"""

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from wsss.metrics.base import METRICS, Metric

AREA = "_area"  # ends the name of the metric of a region, such as chimney_area
GATED = "_gated"  # ends the name of the version that predicts nothing where the classifier sees nothing


@dataclass(frozen=True, kw_only=True)
class Figure:
    """How a metric is shown.

    Attributes:
        heading: of its column.
        meaning: in one sentence. `{one}`, here and in `absent`, is the class of a data set with one class.
        absent: why it may not exist.
        leads: it answers "how good" and is plotted over the steps of training; for maps it has an interval
            NAME_interval over NAME_groups groups.
        headline: one of the few that validation prints and the closing table and the report's first table show.
        in_training: logged by validation.
        measured_on: scores of one class, label maps of several, or image labels.
        per_image: the mean of a column of per_image.csv, so that runs are compared image by image.
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
        meaning="mean IoU over the classes in the truth, including the background, from one confusion matrix",
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
        meaning="mean recall over the classes in the truth",
        absent="the truth holds no pixel",
        measured_on="label maps",
    ),
    "pooled_iou": Figure(
        heading="pooled IoU",
        meaning="IoU of {one} over the pixels of all images together",
        absent="no image shows {one}",
        in_training=True,
    ),
    "fg_bg_miou": Figure(
        heading="fg/bg mIoU",
        meaning="mean of the pooled IoU of {one} and that of the background",
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
        meaning="how well images with {one} rank above others; with several classes, the mean over those in a label",
        absent="no image shows {one}",
        leads=True,
        headline=True,
        in_training=True,
        measured_on="image labels",
    ),
    "class_f1": Figure(
        heading="class F1",
        meaning="F1 of predicting {one} where p >= 0.5; with several classes, the mean over those in a label",
        absent="no image shows {one}",
        in_training=True,
        measured_on="image labels",
    ),
    "accuracy": Figure(
        heading="image accuracy",
        meaning="share of the images with every class right (p >= 0.5)",
        in_training=True,
        measured_on="image labels",
    ),
    "calibration_error": Figure(
        heading="calibration error",
        meaning="mean distance of class probabilities from the share of cases with the class, over ten bins of [0, 1]",
        higher_is_better=False,
        in_training=True,
        measured_on="image labels",
    ),
    "best_on_val": Figure(
        heading="best on val",
        meaning="per-image IoU at the one threshold that is best on the validation split: an upper bound, not a result",
        absent="no image shows {one}",
    ),
    "oracle_per_image_iou": Figure(
        heading="oracle",
        meaning="per-image IoU with the best threshold for each image: an upper bound, not a result",
        absent="no image shows {one}",
    ),
}


def region_figure(region: str, *, gated: bool) -> Figure:
    """The metric NAME_area, the share of named boxes of the truth, such as chimneys, that is wrongly predicted; or its
    gated version NAME_area_gated."""
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
    """How a package's metric is shown."""
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
    """Whether a metric of this name is in the table or belongs to a region."""
    return name in FIGURES or name.removesuffix(GATED).endswith(AREA)


def find_figure(name: str) -> Figure | None:
    """The metric of this name in the table, of a region or of a package; None if there is none."""
    if name in FIGURES:
        return FIGURES[name]
    if is_ours(name):
        area = name.removesuffix(GATED)
        return region_figure(area.removesuffix(AREA), gated=area != name)
    return offered_figure(METRICS[name]) if name in METRICS else None


def get_figure(name: str) -> Figure:
    """The metric of this name. Raises ValueError if there is none."""
    figure = find_figure(name)
    if figure is None:
        raise ValueError(f"there is no metric '{name}'; {hint_at(name, list(FIGURES))}")
    return figure


def hint_at(wanted: str, known: Sequence[str]) -> str:
    """A hint at known names similar to a wrong one; all known names if none is similar."""
    return f"nearest are {', '.join(difflib.get_close_matches(wanted, known, n=3, cutoff=0.4) or known)}"


def order_figures(names: Iterable[str]) -> dict[str, Figure]:
    """{name: figure} of the names that are metrics, in the order of the table, with areas of regions after the false
    alarms and those of packages last."""
    found = {name: figure for name in sorted(set(names)) if (figure := find_figure(name))}
    order = list(FIGURES)
    after = order.index("false_alarm_area_gated")

    def place(name: str) -> float:
        return order.index(name) if name in FIGURES else after + 0.5 if is_ours(name) else len(order)

    return {name: found[name] for name in sorted(found, key=place)}


def list_logged_figures(measured_on: str) -> list[str]:
    """Names of the metrics that validation logs and for which higher is better."""
    return [
        name
        for name, figure in FIGURES.items()
        if figure.measured_on == measured_on and figure.in_training and figure.higher_is_better
    ]


def without_nan(value: Any) -> Any:
    """The value, with NaN replaced by None (the metric does not exist), also in its lists and dicts."""
    if isinstance(value, dict):
        return {name: without_nan(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def require_known(wanted: str, known: Sequence[str], where: str) -> None:
    """Raise ValueError unless validation gives a metric and higher is better for it.

    Args:
        wanted, known: names in the log, such as val/class_map/miou.
        where: the config's key.
    """
    figure = find_figure(wanted.split("/")[-1])
    if figure is not None and not figure.higher_is_better:
        raise ValueError(
            f"{where} names '{wanted}', for which lower is better; choose a metric for which higher is better"
        )
    if wanted not in known:
        raise ValueError(f"{where}: evaluation gives no metric '{wanted}'; {hint_at(wanted, known)}")
