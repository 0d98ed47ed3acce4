"""What is chosen on the `tune` split: the threshold of each source's maps or, if the split has no masks, the gate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from launcher.config.whole import Config
from launcher.evaluation.count import count_for_choice, count_predictions
from launcher.evaluation.figures import without_nan
from launcher.evaluation.formats import name_class, rests_on_few
from launcher.evaluation.image_labels import PRESENT_PROB, mean_f1
from launcher.evaluation.measure import Measure
from launcher.evaluation.sources import Source, find_sources
from launcher.files import typed
from launcher.run.folder import Run
from shards.folder import ShardFolder
from shards.index import name_shared
from wsss.metrics.counts import THRESHOLDS


@dataclass
class Tuned:
    """What was chosen on the tune split.

    Attributes:
        thresholds: {source: threshold} of the sources that have one.
        values: {source: its metric on the tune split, at its threshold if it has one}.
        figure: name of that metric; "" if there is none.
        untuned: {source: why it has no threshold} of the sources that could have one.
        gate: of the class probabilities; None if it was not chosen.
        shown: number of images of the split whose label names a class: what the choice rests on.
    """

    thresholds: dict[str, float] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    figure: str = ""
    untuned: dict[str, str] = field(default_factory=dict)
    gate: float | None = None
    shown: int = 0

    def about(self, config: Config) -> dict[str, Any] | None:
        """What evaluation.json says about the split; None if nothing was chosen."""
        if not (self.values or self.gate is not None):
            return None
        about = {"folder": str(config.data.tune), "images_shown": self.shown}
        return about | {"figure": self.figure, "values": self.values, "best": self.best(about)}

    def best(self, about: Mapping[str, Any]) -> str | None:
        """The source with the highest metric on the tune split, the first of equals; None if it rests on few images."""
        return None if rests_on_few(about) or not self.values else max(self.values, key=lambda name: self.values[name])


LABELS_BY = "miou"  # compares label maps, and scores of several classes
NO_MAPS = (
    "there are no such maps of the split tune; `{}` makes its CAMs, and `wsss refine` with the same options its masks"
)


def tune(run: Run, val: ShardFolder, sources: Sequence[Source]) -> Tuned:
    """Choose thresholds, or the gate, for these sources of `val` on the run's tune split."""
    config = run.config
    named = {source.name for source in sources if source.has_threshold}
    missing = (
        "data.tune is not set"
        if config.data.tune is None
        else NO_MAPS.format(typed("infer", run.folder, "--split", "tune", f"data.tune={config.data.tune}"))
    )
    with_maps = set() if val.index.supervision == "label" else named
    found = Tuned(untuned=dict.fromkeys(sorted(with_maps), missing))
    there = [one for one in find_sources(run.folder, "tune") if one.name in {source.name for source in sources}]
    tuning = [source for source in there if source.has_threshold]
    if not there or config.data.tune is None:
        return found
    shards = ShardFolder(config.data.tune)
    if shared := name_shared(shards.index, val.index, "data.val"):
        found.untuned = dict.fromkeys(found.untuned, f"{shards.folder} {shared}")
        return found
    found.shown = int(shards.image_label_NK.any(axis=1).sum())
    if shards.index.supervision == "label" and tuning:
        found.untuned = dict.fromkeys(found.untuned, f"{shards.folder} holds no masks")
        (measures,) = count_predictions([(shards, tuning[:1])], config)  # every source has the same probabilities
        found.gate = best_gate(measures[tuning[0].name])
        return found
    (choosers,) = count_for_choice([(shards, [one for one in tuning if one.name in with_maps])], config)
    for name, chooser in choosers.items():
        found.untuned[name] = f"no image of {config.data.tune} shows {name_class([shards.index.classes])}"
        if (best := chooser.best()) is not None:
            found.thresholds[name], found.values[name] = best
            found.figure = chooser.chooses_by
            del found.untuned[name]
    label_maps = [one for one in there if not one.has_threshold]
    if shards.index.supervision == "pixel" and label_maps and found.figure in ("", LABELS_BY):
        (measures,) = count_predictions([(shards, label_maps)], config)
        values = {name: measure.figures_at(0.0)[LABELS_BY] for name, measure in measures.items()}
        found.values |= {name: value for name, value in values.items() if value is not None}
        found.figure = LABELS_BY
    return found


def best_gate(labels: Measure) -> float | None:
    """The gate with the best mean F1 over the classes that a label names; of equally good ones, the nearest to
    PRESENT_PROB. None if no label names a class."""
    prob_NK, present_NK = labels.decisions()
    if not present_NK.any():
        return None
    f1_T = np.array([mean_f1(prob_NK, present_NK, float(gate)) for gate in THRESHOLDS[1:]])
    best = THRESHOLDS[1:][f1_T >= f1_T.max() - 1e-9]
    return round(float(best[np.abs(best - PRESENT_PROB).argmin()]), 2)


def describe_gate(gate: float | None, measure: Measure, tuned_on: str) -> dict[str, Any] | None:
    """What evaluation.json says about a tuned gate, with the class F1 of `val` at it; None without a gate."""
    if gate is None:
        return None
    return {"tuned": gate, "tuned_on": tuned_on, "class_f1": without_nan(mean_f1(*measure.decisions(), gate))}
