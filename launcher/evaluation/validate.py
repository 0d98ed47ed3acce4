"""Evaluation inside training: figures and a CAM gallery of the validation split, shared out over the ranks."""

import math
from collections.abc import Callable

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

from launcher.config.sections import Config
from launcher.evaluation.galleries import gallery_numbers
from launcher.evaluation.measure import Measure, Tally, measure_for
from launcher.evaluation.pictures import gallery, heat, outlined
from launcher.jobs.infer import score_samples
from launcher.jobs.scores import Scores, at_size
from launcher.tracking.tracker import Tracker
from shards.folder import ShardFolder
from wsss.methods.base import Method

IN_TRAINING = ("per_image_iou", "pooled_iou", "precision", "recall", "miou")


def validator(
    config: Config, method: Method, shards: ShardFolder, accelerator: Accelerator, tracker: Tracker
) -> Callable[[int], dict[str, float]]:
    """step -> log the figures of every CAM kind at the fixed threshold, and the gallery. All ranks must call it; rank 0
    gets the figures as they are logged, the others {}.

    Each rank scores every ranks-th sample, once; rank 0 puts them together. A method that segments is judged by its
    masks instead: see validate_segmentation.
    """
    if method.segments:
        from launcher.evaluation.validate_masks import segmentation_validator

        return segmentation_validator(config, method, shards, accelerator, tracker)
    drawn = gallery_numbers(shards, config.evaluate.gallery)
    threshold = config.evaluate.threshold

    def validate(step: int) -> dict[str, float]:
        numbers = list(range(len(shards)))[accelerator.process_index :: accelerator.num_processes]
        measures = {kind: measure_for(shards.index.as_class_set(), threshold) for kind in config.cam.kinds}
        rows = {}
        for number, scores in score_samples(method, shards, numbers, config, accelerator.device):
            truth_HW, regions = shards.mask(number), shards.regions(number)
            for kind, measure in measures.items():
                measure.add(scores, kind, truth_HW, regions)
            if number in drawn:
                rows[number] = gallery_row(shards, number, scores)
        for other, other_rows in gather_object([(measures, rows)])[1:] if accelerator.num_processes > 1 else []:
            rows.update(other_rows)
            for kind, measure in measures.items():
                measure.extend(other[kind])
        figures: dict[str, float] = {}
        if accelerator.is_main_process:
            figures = {f"val/{name}": value for name, value in figures_of(measures, threshold).items()}
            tracker.log(figures, step)
            if rows:
                tracker.image("gallery", gallery([rows[number] for number in sorted(rows)]), step)
            print(f"step {step}: " + ", ".join(f"{n.removeprefix('val/')} {v:.3f}" for n, v in figures.items()))
        accelerator.wait_for_everyone()
        return figures

    return validate


def figures_of(measures: dict[str, Measure], threshold: float) -> dict[str, float]:
    """{KIND/figure: value} of all kinds, and the classification figures once."""
    found: dict[str, float] = {}
    for kind, measure in measures.items():
        if isinstance(measure, Tally):
            found |= measure.classification()
        for name, value in measure.figures_at(threshold).items():
            if (name in IN_TRAINING or name.endswith("_area")) and not math.isnan(value):
                found[f"{kind}/{name}"] = value
    return found


def gallery_row(shards: ShardFolder, number: int, scores: Scores) -> tuple[str, dict[str, np.ndarray]]:
    """The image with its truth, and every kind of cam over it."""
    image_HW3 = shards.image(number)
    pictures = {"image, truth": outlined(image_HW3, shards.mask(number))}
    for kind, scores_nhw in scores.maps.items():
        pictures[kind] = heat(image_HW3, at_size(scores_nhw, image_HW3.shape[:2]).max(0, initial=0))
    return f"{scores.key}  p={max(scores.cls_probs):.2f}", pictures
