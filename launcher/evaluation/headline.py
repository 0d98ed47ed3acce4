"""The metric to quote for a run, and what to compare it with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from launcher.errors import RunError
from launcher.evaluation.class_sums import compare_mious, read_class_sums
from launcher.evaluation.figures import FIGURES, order_figures
from launcher.evaluation.formats import finds_nothing, format_interval, format_percent, rests_on_few
from launcher.evaluation.per_image import compare_images, read_ious
from launcher.files import Damaged, read_json, typed
from launcher.run.folder import EVALUATION, Run, is_run

NEARLY_ALL = 0.95  # share of the area; a larger mask says nothing


def pick_headline(
    sources: Mapping[str, Mapping[str, Any]], kinds: Sequence[str], tune: Mapping[str, Any] | None
) -> dict[str, str]:
    """The source and threshold choice whose metric is quoted for a run: {"source", "choice"}.

    The masks that the network segmented itself, if there are any; otherwise the first kind of CAM in `cam.kinds`;
    otherwise the first source. At the tuned threshold, if one was tuned on enough images (`tune`) and found something,
    the same choice as in prediction (D-178).
    """
    names = [name for name in ("segments", *kinds) if name in sources] or list(sources)
    tuned = sources[names[0]]["tuned"]
    trusted = tuned and not rests_on_few(tune) and not finds_nothing(tuned.get("threshold"))
    return {"source": names[0], "choice": "tuned" if trusted else "fixed"}


@dataclass(frozen=True)
class Headline:
    """A run's metric to quote, from its evaluation.

    Attributes:
        figure: its name; "" if the evaluation counted nothing.
        at: all metrics of its source at its threshold.
    """

    run: Path
    evaluation: Mapping[str, Any]
    source: str
    choice: str

    @property
    def at(self) -> Mapping[str, Any]:
        return self.evaluation["sources"][self.source][self.choice]

    @property
    def figure(self) -> str:
        return find_leading(self.at)

    @property
    def value(self) -> float | None:
        return self.at.get(self.figure)

    def interval(self) -> str:
        """[low, high] in percent; "" if there is none."""
        groups = self.at.get(f"{self.figure}_groups")
        return format_interval(self.at.get(f"{self.figure}_interval"), groups=groups)

    def where(self) -> str:
        """The source and the threshold in words."""
        if "threshold" not in self.at:
            return "image labels" if self.figure == "average_precision" else self.source
        return f"{self.source}, threshold {self.at['threshold']:.2f} {self.choice}"


def read_headline(run: Run) -> Headline | None:
    """The headline of a run from evaluation.json; None without an evaluation. Raises Damaged."""
    if not (run.folder / EVALUATION).is_file():
        return None
    evaluation = read_json(run.folder / EVALUATION)
    return Headline(run.folder, evaluation, **evaluation["headline"])


def find_leading(at: Mapping[str, Any]) -> str:
    """The first metric that answers "how good"; "" if none does."""
    return next((name for name, figure in order_figures(at).items() if figure.leads), "")


@dataclass(frozen=True)
class Beside:
    """What a headline is compared with.

    Attributes:
        gap: difference to it and ends of its 95 % interval, if both were measured on the same images.
        groups: number of groups behind the interval.
    """

    what: str
    value: float
    gap: tuple[float, float, float] | None = None
    groups: int | None = None

    def words(self) -> str:
        """Its name, its value and the difference to it, in percent."""
        gap = ""
        if self.gap:
            interval = format_interval(self.gap[1:], groups=self.groups, signed=True)
            gap = f" ({format_percent(self.gap[0], signed=True)} {interval})"
        return f"{self.what} {format_percent(self.value)}{gap}"


class Known(NamedTuple):
    """What a study knows about a run.

    Attributes:
        paper: a paper's value for its headline, in [0, 1].
        control: the run that it is compared with.
    """

    paper: float | None = None
    control: Run | None = None


def hold_against(headline: Headline, one: str, known: Known) -> list[Beside]:
    """What a headline is compared with: a control, the run's teacher, a prediction that learned nothing, and a paper.
    Runs that were judged on other images are left out.

    Args:
        one: the name of the class in texts.
    """
    control, teacher = known.control, Run(headline.run).teacher
    others = {} if control is None or control.folder == headline.run else {f"control {control.config.name}": control}
    if teacher is not None and is_run(teacher):
        others["its teacher"] = Run(teacher)
    found = [beside for what, other in others.items() if (beside := compare(headline, what, other))]
    paper = Beside("paper", known.paper) if known.paper is not None else None
    return [*found, *filter(None, [chance_of(headline, one), paper])]


def compare(headline: Headline, what: str, other: Run) -> Beside | None:
    """The headline of another run, with its source if that differs; None unless metric and images are the same."""
    try:
        theirs = read_headline(other)
    except Damaged:  # the report on that run says so
        return None
    if theirs is None or theirs.value is None or headline.value is None or theirs.figure != headline.figure:
        return None
    if theirs.evaluation["dataset"]["fingerprint"] != headline.evaluation["dataset"]["fingerprint"]:
        return None
    if theirs.source != headline.source:
        what = f"{what} {theirs.source}"
    if headline.figure == "miou":
        sums, others_sums = (read_class_sums(one.run, one.source, one.choice) for one in (headline, theirs))
        return Beside(what, theirs.value, compare_mious([sums], [others_sums]), headline.at.get("miou_groups"))
    if not FIGURES[headline.figure].per_image:
        return Beside(what, theirs.value)
    ours, others = (read_ious(one.run, one.source, one.choice) for one in (headline, theirs))
    groups = len({group for key, (group, _) in ours.items() if key in others})
    return Beside(what, theirs.value, compare_images(ours, others), groups)


def chance_of(headline: Headline, one: str) -> Beside | None:
    """The same metric of a prediction that learned nothing: the class everywhere (of several classes: background), or
    the images in any order; None if it is not known."""
    if headline.figure == "per_image_iou":
        everywhere = headline.evaluation["sources"][headline.source].get("curve", {}).get("per_image_iou", [None])[0]
        return None if everywhere is None else Beside(f"{one} everywhere", everywhere)
    if headline.figure == "miou" and (share := headline.at.get("background_share")):
        return Beside("background everywhere", share / headline.at["classes_in_truth"])
    if headline.figure == "average_precision":
        images = headline.evaluation["dataset"]["images"]
        counts = [about["images"] for about in headline.evaluation.get("labels", {}).get("classes", {}).values()]
        shares = [count / images for count in counts if count]
        return Beside("any order", float(np.mean(shares))) if shares else None
    return None


def explain_degenerate(at: Mapping[str, Any], one: str) -> str:
    """Why metrics say nothing about the maps: everything or nothing is predicted; "" if they say something."""
    if at.get("false_alarm_area") is not None and at["false_alarm_area"] >= NEARLY_ALL:
        return f"{one} is predicted nearly everywhere"
    if at.get("threshold") == 0:
        return f"at threshold 0 {one} is predicted everywhere"
    of_classes = at.get("class_iou", {})
    objects = [iou for name, iou in of_classes.items() if name != "background" and iou is not None]
    if at.get("recall") == 0 or (objects and not any(objects)):
        several = len(of_classes) > 2
        return "no class is ever predicted correctly" if several else f"{one} is never predicted correctly"
    return ""


def require_control(folder: Path) -> Run:
    """The run that others are compared with. Raises RunError if it was not evaluated."""
    run = Run(folder)
    if read_headline(run) is None:
        raise RunError(f"--control {folder}: this run was not evaluated; run `{typed('evaluate', folder)}` first")
    return run


def describe_headline(headline: Headline, one: str, known: Known) -> str:
    """The headline as lines of text: metric, interval, source, and what to compare it with."""
    if not headline.figure:
        return f"no metric of {headline.source}"
    said = f"{FIGURES[headline.figure].heading} {format_percent(headline.value)} {headline.interval()}".rstrip()
    degenerate = explain_degenerate(headline.at, one) if headline.value is not None else ""
    beside = [one_of.words() for one_of in hold_against(headline, one, known)]
    return "\n  ".join([f"{said} ({headline.where()})", *filter(None, [degenerate]), *beside])
