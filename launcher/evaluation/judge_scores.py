"""Validation of a method by the scores of its CAMs, the same that `wsss infer` stores, at the fixed threshold."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from accelerate import Accelerator

from launcher.config.whole import Config
from launcher.evaluation.figures import find_figure, list_logged_figures
from launcher.evaluation.galleries import Row, name_probable, start_row
from launcher.evaluation.image_labels import HIGH
from launcher.evaluation.judge import LABELS, Figures
from launcher.evaluation.measure import Measure, read_truth
from launcher.evaluation.offered_metrics import OfferedMetrics, list_high
from launcher.evaluation.pictures import as_tile
from launcher.evaluation.sources import ScorePrediction, measure_scores
from launcher.jobs.infer import score_samples
from shards.folder import ShardFolder
from shards.schema import ClassSet
from wsss.methods.base import Method


@dataclass
class ScorePart:
    """A measure for every kind of CAM, and the metrics of packages."""

    measures: dict[str, Measure]
    offered: dict[str, OfferedMetrics]
    threshold: float
    rows: dict[int, Row] = field(default_factory=dict)

    def extend(self, other: "ScorePart") -> None:
        self.rows.update(other.rows)
        for kind, measure in self.measures.items():
            measure.extend(other.measures[kind])
            self.offered[kind].extend(other.offered[kind])

    def figures(self) -> Figures:
        found: Figures = {}
        for kind, measure in self.measures.items():
            found[LABELS] = measure.classification()
            found[kind] = measure.figures_at(self.threshold) | self.offered[kind].figures()
        return {
            kind: {
                name: value for name, value in values.items() if (figure := find_figure(name)) and figure.in_training
            }
            for kind, values in found.items()
        }


class ScoreJudge:
    """See judge.Judge."""

    keeps_gallery: ClassVar[bool] = False

    def __init__(self, config: Config, method: Method, shards: ShardFolder, accelerator: Accelerator) -> None:
        self.config, self.method, self.shards, self.device = config, method, shards, accelerator.device
        self.quoted = config.cam.kinds[:1]

    def judge(self, numbers: Sequence[int], drawn: set[int]) -> ScorePart:
        class_set, threshold = self.shards.index.as_class_set(), self.config.evaluate.threshold
        kinds, metrics = self.config.cam.kinds, self.config.evaluate.metrics
        offered = {kind: OfferedMetrics.of(metrics, class_set.classes) for kind in kinds}
        part = ScorePart({kind: measure_scores(class_set) for kind in kinds}, offered, threshold)
        for number, scores in score_samples(self.method, self.shards, numbers, self.config, self.device):
            truth = read_truth(self.shards, number)
            predictions = {kind: ScorePrediction(scores, kind, threshold) for kind in part.measures}
            for kind, prediction in predictions.items():
                part.measures[kind].add(prediction, truth)
                part.offered[kind].add(prediction, truth)
            if number in drawn:
                row = start_row(self.shards, number, name_probable(class_set, scores.cls_probs))
                tile_HW3 = as_tile(self.shards.image(number))
                row[1].update({kind: prediction.draw_on(tile_HW3) for kind, prediction in predictions.items()})
                part.rows[number] = row
        return part

    @staticmethod
    def known_figures(config: Config, class_set: ClassSet) -> dict[str, list[str]]:
        measured_on = "scores" if class_set.num_fg_classes == 1 else "label maps"
        known = {kind: [*list_logged_figures(measured_on), *list_high(config)] for kind in config.cam.kinds}
        return {**known, LABELS: [*HIGH]}
