"""Evaluation inside training of a method that segments: mIoU of its masks and of its CAMs, on the device, on all ranks.

Shapes: B images, K foreground classes, C = K + 1, P present classes of an image, S x S the squashed view, H x W pixels
of an image as its owner published it.

The protocol is ToCo's (D-77): the view squashed to data.image_size; `seg` single-scale, unflipped, argmax over
all classes; `cam` and `aux_cam` over three scales and the mirror, times the image label, unless the config's `cam.fuse`
says how they are fused. All are resized to the image's own size before they become class ids.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from launcher.config.sections import Config
from launcher.evaluation.galleries import gallery_numbers, keep_picture
from launcher.evaluation.pictures import gallery, heat, outlined, painted
from launcher.jobs.infer import judged_rule
from launcher.jobs.segment import CAM_KINDS, maps_reader
from launcher.run.folder import run_folder
from launcher.tracking.tracker import Tracker
from shards.batches.augment import Squash
from shards.batches.batch import Batch, to_device
from shards.batches.loaders import eval_loader
from shards.folder import ShardFolder
from wsss.maps.fusion import CamRule, cams_of_present
from wsss.maps.pseudo_label import cam_label
from wsss.maps.scales import ScaledView, scaled_views
from wsss.methods.base import Method
from wsss.metrics.confusion import confusion_matrix, mean_iou
from wsss.metrics.image_labels import label_f1
from wsss.tensors import resize

KINDS = ("seg", *CAM_KINDS)


@dataclass
class Judged:
    """What this rank has counted.

    Attributes:
        confusion: (kinds, C, C) int64 of [truth, prediction], by KINDS.
        f1: float64, sum over images of F1 and their number.
        rows: {sample number: row of the gallery}.
    """

    confusion: Tensor
    f1: Tensor
    rows: dict[int, tuple[str, dict[str, np.ndarray]]] = field(default_factory=dict)


def segmentation_validator(
    config: Config, method: Method, shards: ShardFolder, accelerator: Accelerator, tracker: Tracker
) -> Callable[[int], dict[str, float]]:
    """step -> log val/{seg,cam,aux_cam}/miou and val/f1, and the gallery. All ranks must call it; rank 0 gets these
    figures, the others {}.

    Each rank judges every ranks-th sample, once; confusion matrices are summed over the ranks as int64.
    """
    drawn = gallery_numbers(shards, config.evaluate.gallery)

    def validate(step: int) -> dict[str, float]:
        started = time.perf_counter()
        numbers = list(range(len(shards)))[accelerator.process_index :: accelerator.num_processes]
        judged = judge(config, method, shards, accelerator, numbers, drawn)
        confusion = accelerator.reduce(judged.confusion, "sum")
        f1 = accelerator.reduce(judged.f1, "sum")
        rows = dict(judged.rows)
        for other in gather_object([judged.rows]) if accelerator.num_processes > 1 else []:
            rows.update(other)
        logged: dict[str, float] = {}
        if accelerator.is_main_process:
            seconds = time.perf_counter() - started
            figures = figures_of(confusion.cpu(), f1.cpu())
            logged = {f"val/{name}": value for name, value in figures.items()}
            tracker.log({**logged, "val/seconds": seconds}, step)
            if rows:
                picture = gallery([rows[number] for number in sorted(rows)])
                keep_picture(picture, run_folder(config))
                tracker.image("gallery", picture, step)
            said = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
            print(f"step {step}: {said}; {len(shards)} images in {seconds:.1f} s")
        accelerator.wait_for_everyone()
        return logged

    return validate


def figures_of(confusion: Tensor, f1: Tensor) -> dict[str, float]:
    """mIoU of the kinds that were judged, and the mean F1 of the image labels."""
    found = {
        f"{kind}/miou": mean_iou(confusion_CC)
        for kind, confusion_CC in zip(KINDS, confusion, strict=True)
        if confusion_CC.any()
    }
    return {**found, "f1": float(f1[0] / f1[1])}


@torch.no_grad()
def judge(
    config: Config,
    method: Method,
    shards: ShardFolder,
    accelerator: Accelerator,
    numbers: list[int],
    drawn: set[int],
) -> Judged:
    """Count these samples; nothing waits for the device but the pictures."""
    method.eval()
    rule = judged_rule(config.cam)
    num_classes = shards.index.as_class_set().num_fg_classes + 1
    device = accelerator.device
    judged = Judged(
        torch.zeros(len(KINDS), num_classes, num_classes, dtype=torch.int64, device=device),
        torch.zeros(2, dtype=torch.float64, device=device),
    )
    loader = eval_loader(
        shards,
        Squash(size=config.data.image_size),
        batch_size=config.segment.batch_size,
        numbers=numbers,
        workers=config.data.workers if numbers else 0,
    )
    for batch in loader:
        batch = to_device(batch, device)
        whole, views = views_of(method, batch["image"], accelerator, rule)
        f1_B = label_f1(whole.scores[0].float(), batch["image_label"])
        judged.f1 += torch.stack([f1_B.sum(), f1_B.new_tensor(len(f1_B))])
        cams = cams_of_present(views, CAM_KINDS, batch["present"], batch["image"].shape[-2:], rule.fuse)
        seg_logits_BChw = whole.at_one_layer("seg")[0]
        for i, number in enumerate(batch["number"]):
            one = slice(i, i + 1)
            truth_HW = torch.from_numpy(shards.mask(number)).to(device, non_blocking=True)
            labels = {"seg": resize(seg_logits_BChw[one].float(), truth_HW.shape).argmax(dim=1)[0]}
            for kind, cam_BPSS in cams.items():
                threshold = config.evaluate.threshold
                labels[kind] = cam_label(cam_BPSS[one], batch["present"][one], truth_HW.shape, threshold)
            for kind, label_HW in labels.items():
                judged.confusion[KINDS.index(kind)] += confusion_matrix(truth_HW, label_HW, num_classes)
            if number in drawn:
                pictures = pictures_of(method, {name: batch[name][one] for name in ("image", "image_label", "present")})
                judged.rows[number] = gallery_row(shards, number, {**labels, **pictures})
    return judged


def views_of(
    method: Method, image_B3SS: Tensor, accelerator: Accelerator, rule: CamRule
) -> tuple[ScaledView, list[ScaledView]]:
    """The raw maps and class scores of a batch as it is, and of every scale of the rule."""
    scales = list(dict.fromkeys([1.0, *rule.scales]))
    read = maps_reader(method.student, accelerator)
    stride = method.student.stride
    seen = scaled_views(read, image_B3SS, stride=stride, scales=scales, flip=rule.flip, pad=rule.pad)
    of_scale = dict(zip(scales, seen, strict=True))
    return of_scale[1.0], [of_scale[scale] for scale in rule.scales]


def pictures_of(method: Method, batch: Batch) -> dict[str, Tensor]:
    """The method's own pictures of one image: (h, w) scores in [0, 1] or int64 label maps."""
    draw: Any = getattr(method, "pictures", None)
    if draw is None:
        return {}
    return {name: map_Bhw[0] for name, map_Bhw in draw(batch).items()}


def gallery_row(shards: ShardFolder, number: int, maps: dict[str, Tensor]) -> tuple[str, dict[str, np.ndarray]]:
    """The image with its truth, and every map over it: scores as heat, labels in their classes' colours."""
    image_HW3 = shards.image(number)
    size = image_HW3.shape[:2]
    tiles = {"image, truth": outlined(image_HW3, shards.mask(number))}
    for name, map_hw in maps.items():
        if map_hw.dtype.is_floating_point:
            tiles[name] = heat(image_HW3, resize(map_hw.float()[None, None], size)[0, 0].clamp(0, 1).cpu().numpy())
        else:
            nearest = torch.nn.functional.interpolate(map_hw.to(torch.uint8)[None, None], size, mode="nearest-exact")
            tiles[name] = painted(image_HW3, nearest[0, 0].cpu().numpy())
    return shards.keys[number], tiles
