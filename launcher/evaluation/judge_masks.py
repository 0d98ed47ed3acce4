"""Validation of a method that segments: mIoU of its masks and of its CAMs, counted on the device.

Shapes: B images, K foreground classes, C = K + 1, P present classes of an image, S x S the squashed view, H x W pixels
of an image at its own size.

The protocol is ToCo's (D-77): the image squashed to data.image_size; `seg` at a single scale, not mirrored, argmax over
all classes; `cam` and `aux_cam` over three scales and the mirror image, times the image label, unless the config's
`cam.fuse` says how they are fused. All are resized to the image's own size before they become class ids.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from launcher.config.whole import Config
from launcher.errors import RunError
from launcher.evaluation.figures import list_logged_figures, without_nan
from launcher.evaluation.galleries import Row, start_row
from launcher.evaluation.image_labels import HIGH, ImageLabels
from launcher.evaluation.judge import LABELS, Figures
from launcher.evaluation.measure import read_truth
from launcher.evaluation.offered_metrics import OfferedMetrics, list_high
from launcher.evaluation.pictures import as_tile, overlay_classes, overlay_scores
from launcher.evaluation.sources import LabelPrediction
from launcher.jobs.infer import judged_rule
from launcher.jobs.segment_images import CAM_KINDS, maps_reader
from launcher.processes.precision import in_precision
from shards.batches.augment import Squash
from shards.batches.batch import to_device
from shards.batches.loaders import eval_loader
from shards.folder import ShardFolder
from shards.schema import ClassSet
from wsss.maps.fusion import CamRule, cams_of_present
from wsss.maps.pseudo_label import cam_label
from wsss.maps.scales import ScaledView, scaled_views
from wsss.methods.base import Method
from wsss.metrics.confusion import confusion_matrix, mean_iou
from wsss.metrics.image_labels import label_f1
from wsss.tensors import resize

KINDS = ("seg", *CAM_KINDS)


@dataclass
class MaskPart:
    """Confusion matrices and label F1.

    Attributes:
        confusion: (kinds, C, C) int64, [truth, prediction], in the order of KINDS.
        f1: (3) float64: sum of F1 over the images, number of images, number of those with a class in their label.
        kinds: those of KINDS that the network has.
        labels: class probabilities and labels of the images.
        offered: the metrics of packages, in the order of KINDS.
    """

    confusion: Tensor
    f1: Tensor
    rows: dict[int, Row] = field(default_factory=dict)
    kinds: set[str] = field(default_factory=lambda: {"seg"})
    labels: ImageLabels = field(default_factory=ImageLabels)
    offered: dict[str, OfferedMetrics] = field(default_factory=dict)

    def extend(self, other: "MaskPart") -> None:
        self.confusion += other.confusion
        self.f1 += other.f1
        self.rows.update(other.rows)
        self.kinds |= other.kinds
        self.labels.extend(other.labels)
        for kind, metrics in self.offered.items():
            metrics.extend(other.offered[kind])

    def count(self, truth_HW: Tensor, labels: Mapping[str, Tensor]) -> None:
        """Count an image's label maps, {kind: label map}."""
        self.kinds.update(labels)
        for kind, label_HW in labels.items():
            self.confusion[KINDS.index(kind)] += confusion_matrix(truth_HW, label_HW, self.confusion.shape[-1])

    def figures(self) -> Figures:
        found: Figures = {
            kind: {"miou": without_nan(mean_iou(confusion_CC))}
            | (self.offered[kind].figures() if kind in self.offered else {})
            for kind, confusion_CC in zip(KINDS, self.confusion, strict=True)
            if kind in self.kinds
        }
        total, images, labelled = self.f1.tolist()
        return {**found, LABELS: {"f1": total / images if labelled else None, **self.labels.classification()}}


class MaskJudge:
    """See judge.Judge."""

    keeps_gallery: ClassVar[bool] = True  # no mask shard holds regions and pseudo labels

    def __init__(self, config: Config, method: Method, shards: ShardFolder, accelerator: Accelerator) -> None:
        self.config, self.method, self.shards, self.accelerator = config, method, shards, accelerator
        self.quoted = ("seg", "cam")

    @torch.no_grad()
    def judge(self, numbers: Sequence[int], drawn: set[int]) -> MaskPart:
        """See Judge.judge. The host waits for the device only for pictures, metrics of packages, and at the end.

        Raises:
            RunError: the network's logits are NaN or infinite.
        """
        self.method.eval()
        rule, device = judged_rule(self.config.cam), self.accelerator.device
        num_classes = self.shards.index.as_class_set().num_fg_classes + 1
        confusion = torch.zeros(len(KINDS), num_classes, num_classes, dtype=torch.int64, device=device)
        part = MaskPart(confusion, torch.zeros(3, dtype=torch.float64, device=device))
        metrics, classes = self.config.evaluate.metrics, self.shards.index.classes
        part.offered = {kind: OfferedMetrics.of(metrics, classes) for kind in KINDS if metrics}
        broken = torch.zeros((), dtype=torch.int64, device=device)
        seen: list[int] = []
        probs_BK: list[Tensor] = []
        for batch in self.load(numbers):
            batch = to_device(batch, device)
            whole, views = self.read_views(batch["image"], rule)
            cams = cams_of_present(views, CAM_KINDS, batch["present"], batch["image"].shape[-2:], rule.fuse)
            cls_logits_BK, seg_logits_BChw = whole.scores[0].float(), whole.at_one_layer("seg")[0]
            seen += batch["number"]
            probs_BK.append(cls_logits_BK.sigmoid())
            part.f1 += sum_f1(cls_logits_BK, batch["image_label"])
            broken += (~seg_logits_BChw.flatten(1).isfinite().all(dim=1)).sum()
            for i, number in enumerate(batch["number"]):
                one = slice(i, i + 1)
                truth_HW = torch.from_numpy(self.shards.mask(number)).to(device, non_blocking=True)
                labels = {"seg": resize(seg_logits_BChw[one].float(), truth_HW.shape).argmax(dim=1)[0]}
                for kind, cam_BPSS in cams.items():
                    threshold = self.config.evaluate.threshold
                    labels[kind] = cam_label(cam_BPSS[one], batch["present"][one], truth_HW.shape, threshold)
                part.count(truth_HW, labels)
                if metrics:
                    truth = read_truth(self.shards, number)
                    for kind, label_HW in labels.items():
                        part.offered[kind].add(LabelPrediction(label_HW.to(torch.uint8).cpu().numpy()), truth)
                if number in drawn:
                    part.rows[number] = draw_row(self.shards, number, {**labels, **self.own_pictures(batch, one)})
        if count := int(broken):
            raise RunError(
                f"{self.shards.folder}: the network's logits of {count} of {len(numbers)} images are NaN or infinite: "
                "no metric; continue from an earlier checkpoint with a lower train.lr, or train.precision=ieee"
            )
        part.confusion, part.f1 = part.confusion.cpu(), part.f1.cpu()
        part.labels = self.count_labels(seen, torch.cat(probs_BK).tolist() if seen else [])
        return part

    def load(self, numbers: Sequence[int]) -> Iterable[dict[str, Any]]:
        """Batches of these images, squashed."""
        return eval_loader(
            self.shards,
            Squash(size=self.config.data.image_size),
            batch_size=self.config.segment.batch_size,
            numbers=numbers,
            workers=self.config.data.workers,
            pin_memory=self.accelerator.device.type == "cuda",
        )

    def own_pictures(self, batch: dict[str, Any], one: slice) -> dict[str, Tensor]:
        """The method's own pictures of one image of a batch."""
        of_one = {name: batch[name][one] for name in ("image", "image_label", "present")}
        with in_precision(self.config.train.precision, self.accelerator.device.type):
            return {name: maps[0] for name, maps in self.method.pictures(of_one).items()}

    def count_labels(self, numbers: Sequence[int], probs: Sequence[Sequence[float]]) -> ImageLabels:
        """Class probabilities of these images with their labels."""
        judged = ImageLabels(self.shards.index.classes)
        for number, probs_K in zip(numbers, probs, strict=True):
            present_K = self.shards.image_label_NK[number] > 0
            judged.count(self.shards.keys[number], self.shards.groups[number], probs_K, present_K.tolist())
        return judged

    def read_views(self, image_B3SS: Tensor, rule: CamRule) -> tuple[ScaledView, list[ScaledView]]:
        """Raw maps and class scores of a batch, unscaled and at every scale of the rule."""
        scales = list(dict.fromkeys([1.0, *rule.scales]))
        read = maps_reader(self.method.student, self.config.train.precision)
        stride = self.method.student.stride
        seen = scaled_views(read, image_B3SS, stride=stride, scales=scales, flip=rule.flip, pad=rule.pad)
        of_scale = dict(zip(scales, seen, strict=True))
        return of_scale[1.0], [of_scale[scale] for scale in rule.scales]

    @staticmethod
    def known_figures(config: Config, class_set: ClassSet) -> dict[str, list[str]]:
        of_maps = [*list_logged_figures("label maps"), *list_high(config)]
        return {**dict.fromkeys(KINDS, of_maps), LABELS: ["f1", *HIGH]}


def sum_f1(cls_logits_BK: Tensor, image_label_BK: Tensor) -> Tensor:
    """MaskPart.f1 of one batch."""
    f1_B = label_f1(cls_logits_BK, image_label_BK)
    labelled = (image_label_BK > 0).any(dim=1).sum()
    return torch.stack([f1_B.sum(), f1_B.new_tensor(len(f1_B)), labelled.to(f1_B)])


def draw_row(shards: ShardFolder, number: int, maps: dict[str, Tensor]) -> Row:
    """The image with its truth, and with every map: scores in [0, 1] as heat, int64 labels in their colours."""
    tile_HW3 = as_tile(shards.image(number))
    size = tile_HW3.shape[:2]
    title, tiles = start_row(shards, number)
    for name, map_hw in maps.items():
        if map_hw.dtype.is_floating_point:
            score_HW = resize(map_hw.float()[None, None], size)[0, 0].clamp(0, 1).cpu().numpy()
            tiles[name] = overlay_scores(tile_HW3, score_HW)
        else:
            nearest = torch.nn.functional.interpolate(map_hw.to(torch.uint8)[None, None], size, mode="nearest-exact")
            tiles[name] = overlay_classes(tile_HW3, np.asarray(nearest[0, 0].cpu()))
    return title, tiles
