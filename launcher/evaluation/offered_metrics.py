"""Metrics that installed packages offer (evaluate.metrics), counted along with ours."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.config.options import Named, options_of
from launcher.config.whole import Config
from launcher.errors import ConfigError
from launcher.evaluation.figures import is_ours
from launcher.evaluation.measure import Prediction, Truth
from launcher.evaluation.sources import Source
from shards.folder import ShardFolder
from wsss.metrics.base import METRICS, Metric


@dataclass
class OfferedMetrics:
    """A tally of label maps: {name: metric}."""

    metrics: dict[str, Metric]

    @classmethod
    def of(cls, wanted: Sequence[Named], classes: Sequence[str]) -> "OfferedMetrics":
        """An empty tally of the wanted metrics."""
        made: dict[str, Callable[..., Metric]] = {one.name: METRICS[one.name] for one in wanted}
        return cls({one.name: made[one.name](tuple(classes), **options_of(one, METRICS)) for one in wanted})

    def add(self, prediction: Prediction, truth: Truth) -> None:
        if self.metrics:
            label_HW = prediction.label_at(truth.mask_HW.shape)
            for metric in self.metrics.values():
                metric.update(label_HW, truth.mask_HW)

    def extend(self, other: "OfferedMetrics") -> None:
        for name, metric in self.metrics.items():
            metric.merge(other.metrics[name])

    def figures(self) -> dict[str, float | None]:
        """{name: its value}; None for no value, NaN and infinity."""
        found = {name: metric.compute() for name, metric in self.metrics.items()}
        return {
            name: None if value is None or not math.isfinite(value) else float(value) for name, value in found.items()
        }


@dataclass(frozen=True)
class NewOffered:
    """(source, shards) -> an empty tally; can be sent to worker processes."""

    wanted: tuple[Named, ...]

    def __call__(self, source: Source, shards: ShardFolder) -> OfferedMetrics:
        return OfferedMetrics.of(self.wanted, shards.index.classes)


def list_high(config: Config) -> list[str]:
    """Names of the metrics for which higher is better."""
    return [one.name for one in config.evaluate.metrics if METRICS[one.name].higher_is_better]


def check_metrics(config: Config, val: ShardFolder | None) -> None:
    """Raise ConfigError if a metric has the name of one of ours or one that a log does not allow, or if there are no
    masks to count it on."""
    for one in config.evaluate.metrics:
        if is_ours(one.name) or not re.fullmatch(r"\w+", one.name):
            wrong = "a metric of wsss itself" if is_ours(one.name) else "not a name of letters, digits and '_'"
            raise ConfigError(
                f"evaluate.metrics: '{one.name}' is {wrong}; ask the author of its package to choose another name"
            )
    if config.evaluate.metrics and val is not None and val.index.supervision == "label":
        raise ConfigError(
            f"evaluate.metrics: {val.folder} holds no masks to count {config.evaluate.metrics[0].name} on; choose "
            "another split for data.val or leave it out (evaluate.metrics=[])"
        )


def describe_metrics(config: Config) -> list[dict[str, Any]]:
    """The metrics with all their options, for evaluation.json."""
    return [{"name": one.name, **options_of(one, METRICS)} for one in config.evaluate.metrics]
