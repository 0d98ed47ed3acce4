"""Validation by image labels only, for a split without masks: class probabilities, and pictures of the CAMs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from accelerate import Accelerator

from launcher.config.whole import Config
from launcher.evaluation.galleries import Row, name_probable, start_row
from launcher.evaluation.image_labels import HIGH, ImageLabels
from launcher.evaluation.judge import LABELS, Figures
from launcher.evaluation.pictures import as_tile
from launcher.evaluation.sources import ScorePrediction
from launcher.jobs.infer import score_samples
from shards.folder import ShardFolder
from shards.schema import ClassSet
from wsss.methods.base import Method


@dataclass
class LabelPart:
    """The probabilities and labels of the images."""

    labels: ImageLabels
    rows: dict[int, Row] = field(default_factory=dict)

    def extend(self, other: "LabelPart") -> None:
        self.labels.extend(other.labels)
        self.rows.update(other.rows)

    def figures(self) -> Figures:
        return {LABELS: self.labels.classification()}


class LabelJudge:
    """See judge.Judge. Only the images that are drawn get CAMs."""

    keeps_gallery: ClassVar[bool] = False

    def __init__(self, config: Config, method: Method, shards: ShardFolder, accelerator: Accelerator) -> None:
        self.config, self.method, self.shards, self.device = config, method, shards, accelerator.device
        self.quoted: Sequence[str] = ()
        without_maps = config.cam.model_copy(update={"kinds": ()})
        self.probs_alone = config.model_copy(update={"cam": without_maps})

    def judge(self, numbers: Sequence[int], drawn: set[int]) -> LabelPart:
        class_set = self.shards.index.as_class_set()
        part = LabelPart(ImageLabels(class_set.classes))
        shown = [number for number in numbers if number in drawn]
        others = [number for number in numbers if number not in drawn]
        for chosen, config in ((others, self.probs_alone), (shown, self.config)):
            if not chosen:
                continue
            for number, scores in score_samples(self.method, self.shards, chosen, config, self.device):
                present = self.shards.image_label_NK[number] > 0
                part.labels.count(scores.key, scores.group, scores.cls_probs, present.tolist())
                if number in drawn:
                    row = start_row(self.shards, number, name_probable(class_set, scores.cls_probs))
                    tile_HW3 = as_tile(self.shards.image(number))
                    for kind in self.config.cam.kinds:
                        row[1][kind] = ScorePrediction(scores, kind, self.config.evaluate.threshold).draw_on(tile_HW3)
                    part.rows[number] = row
        return part

    @staticmethod
    def known_figures(config: Config, class_set: ClassSet) -> dict[str, list[str]]:
        return {LABELS: [*HIGH]}
