"""A run's predictions on a split: score maps, inferred or refined, and label maps.

Each is a source of predictions: it says how they were made, reads them along with their image shards, and knows which
measure they need.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from launcher.errors import RunError
from launcher.evaluation import protocol
from launcher.evaluation.confusion import ClassThresholds, Confusion
from launcher.evaluation.image_labels import ImageLabels
from launcher.evaluation.measure import Chooser, Measure, Prediction
from launcher.evaluation.pictures import at_tile, draw_mask, overlay_class_scores, overlay_classes, overlay_scores
from launcher.evaluation.thresholds import Thresholds
from launcher.files import place_outputs, typed
from launcher.jobs import output as jobs
from launcher.jobs.label_maps import read_label_map, read_label_maps, read_left_out, segment_sources_of
from launcher.jobs.scores import REFINED, Scores, at_size, read_scores, read_scores_of
from launcher.jobs.sets import find_begun, find_sets
from shards.folder import ShardFolder
from shards.remote import Place, name_of, parent_of
from shards.schema import ClassSet
from wsss.refine.threshold import mask_of


@dataclass(frozen=True)
class ScorePrediction:
    """Score maps of one kind for the classes that the image may show; `threshold` turns them into class ids."""

    scores: Scores
    kind: str
    threshold: float

    @property
    def prob(self) -> float:
        return self.scores.cls_probs[0]

    @property
    def probs(self) -> tuple[float, ...]:
        return self.scores.cls_probs

    def score_at(self, size: tuple[int, int]) -> np.ndarray:
        # with cam.classes = present, an image whose label names no class has no map
        return at_size(self.scores.maps[self.kind], size).max(0, initial=0)

    def maps_at(self, size: tuple[int, int]) -> tuple[np.ndarray, tuple[int, ...]]:
        return at_size(self.scores.maps[self.kind], size), self.scores.class_ids

    def label_at(self, size: tuple[int, int]) -> np.ndarray:
        return mask_of(*self.maps_at(size), threshold=self.threshold)

    def draw_on(self, tile_HW3: np.ndarray) -> np.ndarray:
        if self.scores.mask is None:
            return self.draw_map(tile_HW3)
        return draw_mask(tile_HW3, at_tile(self.scores.mask, tile_HW3), several=len(self.scores.cls_probs) > 1)

    def draw_map(self, tile_HW3: np.ndarray) -> np.ndarray:
        if len(self.scores.cls_probs) > 1:
            scores_nHW = at_size(self.scores.maps[self.kind], tile_HW3.shape[:2])
            return overlay_class_scores(tile_HW3, scores_nHW, self.scores.class_ids)
        return overlay_scores(tile_HW3, self.score_at(tile_HW3.shape[:2]))


@dataclass(frozen=True)
class LabelPrediction:
    """Class ids at the image's own size."""

    label_HW: np.ndarray

    @property
    def prob(self) -> float:
        raise ValueError("label maps have no class probability")

    @property
    def probs(self) -> None:
        return None

    def score_at(self, size: tuple[int, int]) -> np.ndarray:
        raise ValueError("label maps have no scores")

    def maps_at(self, size: tuple[int, int]) -> tuple[np.ndarray, tuple[int, ...]]:
        raise ValueError("label maps have no scores")

    def label_at(self, size: tuple[int, int]) -> np.ndarray:
        return self.label_HW

    def draw_on(self, tile_HW3: np.ndarray) -> np.ndarray:
        return overlay_classes(tile_HW3, at_tile(self.label_HW, tile_HW3))

    def draw_map(self, tile_HW3: np.ndarray) -> None:
        return None


class Source(Protocol):
    """A folder with one output shard per image shard of a split.

    Attributes:
        name: unique among the sources of a run.
        folder: RUN/.../SPLIT.
        has_threshold: whether its predictions depend on a threshold.
        again: what to do if it belongs to other images.
    """

    @property
    def name(self) -> str: ...

    @property
    def folder(self) -> Place: ...

    @property
    def has_threshold(self) -> bool: ...

    @property
    def again(self) -> str: ...

    def protocol(self, seed: int) -> str:
        """How its predictions were made, in words."""
        ...

    def new_measure(self, class_set: ClassSet) -> Measure:
        """An empty measure for its predictions."""
        ...

    def predictions(self, shards: ShardFolder, shard: str, threshold: float) -> Iterator[tuple[int, Prediction]]:
        """(number, prediction) of every sample of an image shard. Raises DataError or RunError on other samples."""
        ...

    def predict(self, shards: ShardFolder, number: int, threshold: float) -> Prediction:
        """The prediction of one sample; only its bytes are read."""
        ...


@dataclass(frozen=True)
class ScoreSource:
    """CAMs of one kind, or refined scores."""

    name: str
    folder: Place
    kind: str
    has_threshold: ClassVar[bool] = True
    again: ClassVar[str] = "infer, and refine, these images again with --overwrite"

    def protocol(self, seed: int) -> str:
        return protocol.describe_scores(read_made_of(self.folder), name_of(self.folder), seed)

    def new_measure(self, class_set: ClassSet) -> Measure:
        return measure_scores(class_set)

    def predictions(self, shards: ShardFolder, shard: str, threshold: float) -> Iterator[tuple[int, Prediction]]:
        for number, scores in read_scores(shards, self.folder, shard, self.kind):
            yield number, ScorePrediction(scores, self.kind, threshold)

    def predict(self, shards: ShardFolder, number: int, threshold: float) -> Prediction:
        return ScorePrediction(read_scores_of(shards, self.folder, number, self.kind), self.kind, threshold)


@dataclass(frozen=True)
class LabelSource:
    """Masks of `wsss segment`, or the label maps of its CAMs."""

    name: str
    folder: Place
    extension: str
    has_threshold: ClassVar[bool] = False

    @property
    def again(self) -> str:
        return f"remove the folder and run `{typed('segment', parent_of(parent_of(self.folder)))}` again"

    def protocol(self, seed: int) -> str:
        left_out = read_left_out(self.folder) if self.extension == "png" else []
        return protocol.describe_labels(read_made_of(self.folder), self.extension, name_of(self.folder), seed, left_out)

    def new_measure(self, class_set: ClassSet) -> Measure:
        return Confusion(class_set)

    def predictions(self, shards: ShardFolder, shard: str, threshold: float) -> Iterator[tuple[int, Prediction]]:
        for number, label_HW in read_label_maps(shards, self.folder, shard, self.extension):
            yield number, LabelPrediction(label_HW)

    def predict(self, shards: ShardFolder, number: int, threshold: float) -> Prediction:
        return LabelPrediction(read_label_map(shards, self.folder, number, self.extension))


def measure_scores(class_set: ClassSet) -> Measure:
    """An empty measure of scores: at every threshold for one class, at the fixed threshold for several."""
    return Thresholds() if class_set.num_fg_classes == 1 else Confusion(class_set)


def new_measure(source: Source, shards: ShardFolder) -> Measure:
    """An empty measure of a source: of its maps, or only of its probabilities if the shards hold no masks."""
    class_set = shards.index.as_class_set()
    return ImageLabels(class_set.classes) if shards.index.supervision == "label" else source.new_measure(class_set)


def new_chooser(source: Source, shards: ShardFolder) -> Chooser:
    """An empty tally to choose the threshold of a source from, on shards with masks."""
    class_set = shards.index.as_class_set()
    return Thresholds() if class_set.num_fg_classes == 1 else ClassThresholds(class_set)


def find_sources(run: Path, split: str) -> list[Source]:
    """All CAMs, refined scores and label maps of a run on a split.

    The name is KIND for the run's own CAMs and KIND@SET for a further set, followed by +CHAIN if refined; `segments` or
    segments@SET for label maps, followed by .cam or .aux_cam for those of CAMs.

    Raises:
        RunError: two folders would have the same name.
    """
    found: list[Source] = []
    outputs = place_outputs(run)
    for cams in find_sets(outputs, "cams", split):
        _, at, name = name_of(parent_of(cams)).partition("@")
        found += [ScoreSource(f"{kind}{at}{name}", cams, kind) for kind in read_made_of(cams)["cam"]["kinds"]]
    for folder in find_begun(outputs, f"masks/*/{split}"):
        found.append(ScoreSource(name_of(parent_of(folder)), folder, REFINED))
    segmented = segment_sources_of(outputs, split)
    found += [LabelSource(name, folder, extension) for name, (folder, extension) in segmented.items()]
    places: dict[str, Place] = {}
    for source in found:
        other = places.setdefault(source.name, source.folder)
        if other != source.folder:
            raise RunError(f"{other} and {source.folder}: both would be called '{source.name}'; rename one of them")
    return found


def read_made_of(folder: Place) -> dict[str, Any]:
    """job.json of a job's outputs: how they were made. Raises RunError if the folder has none."""
    content = jobs.read_made_of(folder)
    if content is None:
        raise RunError(f"{folder}: has no {jobs.JOB}, so nothing says how it was made; remove it and make it again")
    return content
