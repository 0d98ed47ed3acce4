"""Scores and masks + truth -> figures, each with its protocol.

Thresholds are chosen on the `tune` split (groups disjoint from training and validation) and reported on `val`;
what the best threshold on `val` itself would give stands beside it, named as what it is.
"""

import csv
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from launcher import checkpoint, jobs
from launcher.build import load_about
from launcher.config import Config
from launcher.errors import RunError
from launcher.refine import at_size
from launcher.scores import REFINED, Scores, read_scores
from launcher.tracking import Tracker
from shards.schema import IGNORE_INDEX, Box
from shards.stream import ShardFolder
from wsss import metrics
from wsss.metrics import THRESHOLDS, Counts
from wsss.refine import mask_of

EVALUATION = "evaluation.json"
PER_IMAGE = "per_image.csv"
PRESENT_PROB = 0.5  # an image whose class probability is lower is predicted to show nothing, in the gated figures


@dataclass
class Tally:
    """What one source of scores did on every image of a split, for a single foreground class."""

    keys: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    probs: list[float] = field(default_factory=list)
    parts: list[Counts] = field(default_factory=list)
    region_parts: dict[str, list[Counts]] = field(default_factory=dict)

    def add(
        self, scores: Scores, score_HW: torch.Tensor, truth_HW: torch.Tensor, regions: dict[str, list[Box]]
    ) -> None:
        self.keys.append(scores.key)
        self.groups.append(scores.group)
        self.probs.append(scores.cls_probs[0])
        self.parts.append(metrics.count(score_HW, truth_HW))
        for name, boxes in regions.items():
            if boxes:
                self.region_parts.setdefault(name, []).append(metrics.count(score_HW, inside(boxes, truth_HW)))

    def extend(self, other: "Tally") -> None:
        self.keys += other.keys
        self.groups += other.groups
        self.probs += other.probs
        self.parts += other.parts
        for name, parts in other.region_parts.items():
            self.region_parts.setdefault(name, []).extend(parts)

    @property
    def counts(self) -> Counts:
        return Counts.stack(self.parts)

    @property
    def gated_counts(self) -> Counts:
        """As if the classifier's word were taken first: nothing is predicted where it sees no smoke."""
        counts, shown = self.counts, np.array(self.probs)[:, None] >= PRESENT_PROB
        truth_NT = counts.tp_NT + counts.fn_NT
        return Counts(counts.tp_NT * shown, counts.fp_NT * shown, truth_NT - counts.tp_NT * shown, counts.pixels_N)


def inside(boxes: list[Box], truth_HW: torch.Tensor) -> torch.Tensor:
    """Truth that counts only the background pixels inside the boxes: all else is ignored."""
    region_HW = torch.zeros_like(truth_HW, dtype=torch.bool)
    for y0, y1, x0, x1 in boxes:
        region_HW[y0:y1, x0:x1] = True
    return torch.where(region_HW & (truth_HW == 0), 0, IGNORE_INDEX)


def evaluate(run: Path) -> dict[str, Any]:
    """Write RUN/evaluation.json and RUN/per_image.csv from whatever CAMs and masks of `val` are there.

    Raises:
        RunError: nothing inferred yet, or no validation split in the run's config.
    """
    config, about = load_about(run)
    if config.data.val is None:
        raise RunError(f"{run}: data.val is not set, so there is nothing to evaluate on")
    shards = ShardFolder(config.data.val, "pixel")
    tune = ShardFolder(config.data.tune, "pixel") if config.data.tune else None
    sources = sources_of(run, "val")
    if not sources:
        raise RunError(f"{run}: no CAMs of 'val' here; run `wsss infer {run}` first")
    report: dict[str, Any] = {
        "run": config.name,
        "checkpoint": jobs.made_of(run / "cams" / "val")["checkpoint"],  # type: ignore[index]
        "dataset": {"folder": str(config.data.val), "fingerprint": shards.index.fingerprint, "images": len(shards)},
        "protocol": protocol(config),
        "git_commit": about.get("git_commit"),
        "sources": {},
    }
    if shards.index.as_class_set().num_fg_classes > 1:
        for name, (folder, kind) in sources.items():
            report["sources"][name] = confusion_figures(shards, folder, kind, config.evaluate.threshold)
    else:
        rows: list[dict[str, Any]] = []
        for name, (folder, kind) in sources.items():
            tally = tally_of(shards, folder, kind)
            tune_folder = folder.with_name("tune")
            tuned = best_threshold(tally_of(tune, tune_folder, kind)) if tune and tune_folder.is_dir() else None
            report["sources"][name] = source_figures(tally, config.evaluate.threshold, tuned)
            rows += per_image_rows(name, tally, config.evaluate.threshold, tuned)
        report["classification"] = classification_figures(tally)
        write_csv(run / PER_IMAGE, rows)
    report = without_nan(report)
    (run / EVALUATION).write_text(json.dumps(report, indent=1))
    return report


def without_nan(value: Any) -> Any:
    """JSON knows no NaN: a figure that does not exist is null."""
    if isinstance(value, dict):
        return {name: without_nan(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def protocol(config: Config) -> str:
    views = f"scales {', '.join(f'{s:g}' for s in config.cam.scales)}{' + flip' if config.cam.flip else ''}"
    return (
        f"image squashed to {config.data.image_size} px, {views}, scores resized to the image, seed {config.train.seed}"
    )


def sources_of(run: Path, split: str) -> dict[str, tuple[Path, str]]:
    """{name: (folder of score shards, kind of score)} of all that a run has inferred and refined."""
    cams = run / "cams" / split
    sources = {}
    made = jobs.made_of(cams)
    if made is not None:
        sources = {kind: (cams, kind) for kind in made["cam"]["kinds"]}
    for folder in sorted((run / "masks").glob(f"*/{split}")):
        sources[folder.parent.name] = (folder, REFINED)
    return sources


def scores_with_truth(shards: ShardFolder, folder: Path) -> Iterator[tuple[int, Scores, np.ndarray]]:
    """(number, scores, mask) of every sample; raises RunError if a shard is missing or holds other samples."""
    jobs.finished(folder, [shard.name for shard in shards.index.shards])
    for shard in shards.index.shards:
        for number, scores in zip(shards.numbers_of(shard.name), read_scores(folder / shard.name), strict=True):
            if scores.key != shards.keys[number]:
                raise RunError(f"{folder / shard.name}: holds '{scores.key}', truth has '{shards.keys[number]}'")
            yield number, scores, shards.mask(number)


def tally_of(shards: ShardFolder, folder: Path, kind: str) -> Tally:
    tally = Tally()
    for number, scores, truth_HW in scores_with_truth(shards, folder):
        score_HW = torch.from_numpy(at_size(scores.maps[kind], truth_HW.shape)[0])
        tally.add(scores, score_HW, torch.from_numpy(truth_HW), shards.regions(number))
    return tally


def best_threshold(tally: Tally) -> float:
    """The threshold with the best mean per-image IoU over the images that show the class."""
    counts = tally.counts
    return float(THRESHOLDS[metrics.iou_per_image(counts.take(counts.has_truth_N)).mean(0).argmax()])


def source_figures(tally: Tally, fixed: float, tuned: float | None) -> dict[str, Any]:
    """All figures of one source: at the fixed threshold, at the tuned one, and what no honest threshold can reach."""
    counts = tally.counts
    shown = counts.take(counts.has_truth_N)
    mean_iou_T = metrics.iou_per_image(shown).mean(0) if len(shown) else np.full(len(THRESHOLDS), np.nan)
    oracle_N, _ = metrics.oracle_iou(shown)
    figures = {
        "images": len(counts),
        "images_with_class": len(shown),
        "groups": len(set(tally.groups)),
        "fixed": figures_at(tally, fixed),
        "tuned": None if tuned is None else figures_at(tally, tuned),
        "best_on_val": {"threshold": float(THRESHOLDS[mean_iou_T.argmax()]), "per_image_iou": float(mean_iou_T.max())},
        "oracle_per_image_iou": float(oracle_N.mean()) if len(shown) else float("nan"),
        "curve": {
            "per_image_iou": mean_iou_T.round(5).tolist(),
            "pooled_iou": metrics.pooled_iou(counts).round(5).tolist(),
            "precision": metrics.precision(counts).round(5).tolist(),
            "recall": metrics.recall(counts).round(5).tolist(),
            "false_alarm_area": metrics.false_alarm_area(counts).round(5).tolist(),
        },
    }
    return figures


def figures_at(tally: Tally, threshold: float) -> dict[str, Any]:
    """Figures at one threshold, in [0, 1]; areas are shares of the image."""
    t = int(np.abs(THRESHOLDS - threshold).argmin())
    counts, gated = tally.counts, tally.gated_counts
    shown_N = counts.has_truth_N
    iou_N = metrics.iou_per_image(counts)[shown_N, t]
    low, high = metrics.bootstrap_interval(iou_N, np.array(tally.groups)[shown_N].tolist())
    figures: dict[str, Any] = {
        "threshold": float(THRESHOLDS[t]),
        "per_image_iou": float(iou_N.mean()) if len(iou_N) else float("nan"),
        "per_image_iou_interval": [low, high],
        "per_image_iou_gated": float(metrics.iou_per_image(gated)[shown_N, t].mean()) if len(iou_N) else float("nan"),
        "pooled_iou": float(metrics.pooled_iou(counts)[t]),
        "fg_bg_miou": float(metrics.fg_bg_miou(counts)[t]),
        "precision": float(metrics.precision(counts)[t]),
        "recall": float(metrics.recall(counts)[t]),
        "false_alarm_area": float(metrics.false_alarm_area(counts)[t]),
        "false_alarm_area_gated": float(metrics.false_alarm_area(gated)[t]),
    }
    for name, parts in tally.region_parts.items():
        figures[f"{name}_area"] = float(metrics.false_alarm_area(Counts.stack(parts))[t])
    return figures


def classification_figures(tally: Tally) -> dict[str, float]:
    """How well the class probabilities tell images with the class from images without."""
    probs_N, truth_N = np.array(tally.probs), tally.counts.has_truth_N
    return {
        "average_precision": metrics.average_precision(probs_N, truth_N),
        "accuracy": float(((probs_N >= PRESENT_PROB) == truth_N).mean()),
    }


def confusion_figures(shards: ShardFolder, folder: Path, kind: str, threshold: float) -> dict[str, Any]:
    """mIoU over the whole split of several classes, by one confusion matrix."""
    class_set = shards.index.as_class_set()
    num_classes = class_set.num_fg_classes + 1
    confusion_CC = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    for _, scores, truth_HW in scores_with_truth(shards, folder):
        mask_HW = scores.mask
        if mask_HW is None:
            mask_HW = mask_of(at_size(scores.maps[kind], truth_HW.shape), scores.class_ids, threshold=threshold)
        confusion_CC += metrics.confusion_matrix(torch.from_numpy(truth_HW), torch.from_numpy(mask_HW), num_classes)
    iou_C = metrics.class_iou(confusion_CC).tolist()
    return {
        "threshold": threshold,
        "miou": metrics.mean_iou(confusion_CC),
        "pixel_accuracy": metrics.pixel_accuracy(confusion_CC),
        "mean_accuracy": metrics.mean_accuracy(confusion_CC),
        "class_iou": dict(zip(("background", *class_set.classes), iou_C, strict=True)),
    }


def per_image_rows(name: str, tally: Tally, fixed: float, tuned: float | None) -> Iterator[dict[str, Any]]:
    counts = tally.counts
    columns = {"fixed": fixed, **({} if tuned is None else {"tuned": tuned})}
    at = {column: int(np.abs(THRESHOLDS - value).argmin()) for column, value in columns.items()}
    iou_NT = metrics.iou_per_image(counts)
    for n, key in enumerate(tally.keys):
        row = {"source": name, "key": key, "group": tally.groups[n], "probability": tally.probs[n]}
        row["truth_area"] = int(counts.tp_NT[n, 0] + counts.fn_NT[n, 0]) / int(counts.pixels_N[n])
        for column, t in at.items():
            row[f"iou_{column}"] = round(float(iou_NT[n, t]), 5)
            row[f"false_area_{column}"] = round(float(counts.fp_NT[n, t] / counts.pixels_N[n]), 5)
        yield row


def write_csv(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    rows = list(rows)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def track(run: Path, report: dict[str, Any]) -> None:
    """Send the final figures to the run's MLflow run."""
    config, about = load_about(run)
    step = checkpoint.step_of(Path(report["checkpoint"]))
    tracker = Tracker(run, experiment=config.tracking.experiment, run_id=about["mlflow_run_id"], first_step=step)
    tracker.log(final_metrics(report), step)
    tracker.artifact(run / EVALUATION)
    tracker.close()


def final_metrics(report: dict[str, Any]) -> dict[str, float]:
    """{final/SOURCE/CHOICE/figure: value} of an evaluation. MLflow allows no '+' in a name."""
    found = {}
    for source, figures in report["sources"].items():
        name = source.replace("+", "_")
        for choice in ("fixed", "tuned"):
            for figure, value in (figures.get(choice) or {}).items():
                if isinstance(value, float):
                    found[f"final/{name}/{choice}/{figure}"] = value
        if "miou" in figures:
            found[f"final/{name}/miou"] = figures["miou"]
    return found
