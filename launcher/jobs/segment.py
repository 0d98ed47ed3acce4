"""Checkpoint + image shards -> mask shards, by the network's own segmentation.

`accelerate launch -m launcher.jobs.segment RUN SPLIT FOLDER NAME CAMS [section.key=value ...]`: each of n ranks takes
every
n-th shard. NAME is '-' for the run's own masks, CAMS is 'cams' or '-'.

Shapes: B images, K foreground classes, C = K + 1, n classes a CRF looks at, S x S the squashed view, H x W pixels of an
image as its owner published it.

    KEY.png     class ids at the image's own size
    KEY.json    {"class_ids": those in the mask, "group", "size": [H, W]}
    KEY.cam.png, KEY.aux_cam.png    with `cams`: label maps of the CAMs, by the image label
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from launcher.config.sections import Config, SegmentConfig
from launcher.errors import RunError, report_user_errors
from launcher.jobs import output as jobs
from launcher.jobs.crf_pool import QUEUED, Task, crf_pool, crf_workers, finish, in_order
from launcher.jobs.infer import judged_rule
from launcher.processes.accelerator import make_accelerator
from launcher.progress import Progress
from launcher.run.build import load_trained
from launcher.run.folder import Run
from shards.batches.augment import Squash, Whole
from shards.batches.batch import Batch, to_device
from shards.batches.loaders import eval_loader
from shards.folder import ShardFolder
from shards.remote import Place, absolute
from shards.schema import DataError
from shards.write import write_tar
from wsss.maps.fusion import RULES, TOCO, cams_of_present, fuse_seg_logits
from wsss.maps.pseudo_label import cam_label
from wsss.maps.scales import scaled_views
from wsss.methods.base import Method
from wsss.models.base import Network
from wsss.refine.crf import proposed_classes

CAM_KINDS = ("cam", "aux_cam")


def segments_folder(run: Path, name: str | None) -> Path:
    """RUN/segments, or RUN/segments@NAME for masks made with other settings."""
    return run / (f"segments@{name}" if name else "segments")


def segment(
    run: Path,
    split: str,
    folder: Place,
    overrides: Sequence[str] = (),
    name: str | None = None,
    *,
    cams: bool = False,
) -> Path:
    """Write one mask shard per image shard of `folder` below segments_folder; returns the folder of the split.

    Safe to kill and to run again: finished shards stay, the others are done.

    Args:
        overrides: section.key=value, such as segment.scales=[1,1.5]; what they change is kept in the output folder.
        name: of a further set of masks, which stands beside the run's own.
        cams: also the label maps of the CAMs, by the image labels.

    Raises:
        RunError: no trained run, a network that does not segment, shards of other classes or (with `cams`) without
            labels, or an output folder made with other settings.
    """
    (of, method, checkpoint) = load_trained(Run(run, overrides))
    config, class_set = of.config, of.class_set
    shards = ShardFolder(folder)
    if shards.index.classes != class_set.classes:
        raise RunError(f"{folder} has the classes {shards.index.classes}; {run} was trained on {class_set.classes}")
    if cams and not shards.image_label_NK.any():
        raise RunError(f"{folder}: no image has a label, so its CAMs cannot be judged; leave out --cams")
    accelerator = make_accelerator(config, processes=None)
    out = segments_folder(run, name) / split
    if accelerator.is_main_process:
        jobs.open_output(out, made_of(config, shards, checkpoint, cams))
    accelerator.wait_for_everyone()
    names = [shard.name for shard in shards.index.shards]
    todo = jobs.missing(out, names)[accelerator.process_index :: accelerator.num_processes]
    accelerator.wait_for_everyone()  # nobody writes before everybody has looked
    method.to(accelerator.device).eval()
    workers = crf_workers(config.segment, accelerator.num_processes)
    total = sum(len(shards.numbers_of(shard)) for shard in todo)
    with (
        Progress(total, f"segment {split}", "image", enabled=accelerator.is_main_process) as progress,
        crf_pool(workers if todo else 0) as pool,
    ):
        tasks = tasks_of(method, shards, todo, config, accelerator, cams)
        done = in_order(pool, partial(finish, shards.folder, config.segment), tasks, QUEUED * max(workers, 1))
        for shard_number, of_shard in groupby(done, key=lambda item: int(shards.shard_of[item[0]])):
            write_tar(out / names[shard_number], counted(of_shard, progress))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        jobs.require_all(out, names)
    return out


def made_of(config: Config, shards: ShardFolder, checkpoint: Path, cams: bool) -> dict[str, Any]:
    """What the masks were made of: all that their pixels depend on."""
    rule = judged_rule(config.cam)
    unused = {"batch_size", "workers"} | (set() if config.segment.crf else {"mean_field", "crf_classes"})
    return {
        "shards": absolute(shards.folder),
        "fingerprint": shards.index.fingerprint,
        "checkpoint": checkpoint.name,
        "image_size": config.data.image_size,
        "precision": config.train.precision,
        "segment": config.segment.model_dump(mode="json", exclude=unused),
        "cam_threshold": config.evaluate.threshold if cams else None,
        "cam": asdict(rule) if cams and rule != TOCO else None,
    }


def counted(of_shard: Iterable[tuple[int, str, dict[str, bytes]]], progress: Progress) -> Iterator[Any]:
    for _, key, members in of_shard:
        yield key, members
        progress.advance()


def maps_reader(network: Network, accelerator: Accelerator) -> Callable[[Tensor], tuple[dict[str, Tensor], Tensor]]:
    """image -> ({"seg": (B, C, h, w), "cam", "aux_cam": (B, K, h, w) raw}, class scores (B, K)).

    In the precision of training, without gradients. `aux_cam` only where the network has an auxiliary classifier.
    """

    def read(image: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        with torch.no_grad(), accelerator.autocast():
            out = network(image)
        if out.seg_logits_BChw is None:
            raise RunError(f"{type(network).__name__} gives no segmentation: choose a model and method that segment")
        maps = {"seg": out.seg_logits_BChw, "cam": out.class_map_BKhw}
        if "aux_map" in out.maps:
            maps["aux_cam"] = out.maps["aux_map"]
        return maps, out.cls_logits_BK

    return read


def tasks_of(
    method: Method, shards: ShardFolder, names: Sequence[str], config: Config, accelerator: Accelerator, cams: bool
) -> Iterator[Task]:
    """Segment every image of these shards, in order."""
    settings, stride = config.segment, method.student.stride
    read = maps_reader(method.student, accelerator)
    flips, scales = RULES[settings.rule]
    for batch in loader_of(shards, names, config):
        cam_labels = cam_labels_of(batch, shards, read, stride, config, accelerator.device) if cams else None
        on_device = to_device(batch, accelerator.device)
        views = [
            view.at_one_layer("seg")
            for view in scaled_views(
                read, on_device["image"], stride=stride, scales=settings.scales, flip=settings.flip
            )
        ]
        for i, number in enumerate(batch["number"]):
            own = size_of(shards, number)
            one = [tuple(logits[i : i + 1] for logits in view) for view in views]
            seg_logits_CHW = fuse_seg_logits(one, own, flips=flips, scales=scales)[0]
            yield task_of(number, seg_logits_CHW, settings, cam_labels[i] if cam_labels else {})


def task_of(number: int, seg_logits_CHW: Tensor, settings: SegmentConfig, cams: Mapping[str, np.ndarray]) -> Task:
    """Bring what the rest needs to the host: class ids, or the probabilities of the classes that a CRF looks at."""
    if not settings.crf:
        return Task(number, seg_logits_CHW.argmax(dim=0).to(torch.uint8).cpu().numpy(), None, (), cams)
    probs_CHW = seg_logits_CHW.softmax(dim=0)
    class_ids = proposed_classes(probs_CHW) if settings.crf_classes == "proposed" else list(range(len(probs_CHW)))
    return Task(number, None, probs_CHW[class_ids].cpu().numpy(), tuple(class_ids), cams)


def cam_labels_of(
    batch: Batch,
    shards: ShardFolder,
    read: Callable[[Tensor], tuple[dict[str, Tensor], Tensor]],
    stride: int,
    config: Config,
    device: torch.device,
) -> list[dict[str, np.ndarray]]:
    """Of every image of a batch from the loader: {kind: (H, W) class ids} of its CAMs, of the squashed view."""
    squash = Squash(size=config.data.image_size)
    images = [squash(image_3HW.permute(1, 2, 0).numpy()).image_SS3 for image_3HW in batch["image"]]
    image_B3SS = torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2)).to(device).float() / 255
    rule = judged_rule(config.cam)
    views = list(scaled_views(read, image_B3SS, stride=stride, scales=rule.scales, flip=rule.flip, pad=rule.pad))
    present_BP = batch["present"].to(device)
    cams = cams_of_present(views, CAM_KINDS, present_BP, image_B3SS.shape[-2:], rule.fuse)
    threshold = config.evaluate.threshold
    return [
        {
            kind: cam_label(cam_BPSS[i : i + 1], present_BP[i : i + 1], size_of(shards, number), threshold)
            .to(torch.uint8)
            .cpu()
            .numpy()
            for kind, cam_BPSS in cams.items()
        }
        for i, number in enumerate(batch["number"])
    ]


def size_of(shards: ShardFolder, number: int) -> tuple[int, int]:
    size = shards.about(number).get("size")
    if not (isinstance(size, list) and len(size) == 2):
        raise DataError(f"{shards.where(number)}: its json has no size [height, width]; write the shards again")
    return size[0], size[1]


def loader_of(shards: ShardFolder, names: Sequence[str], config: Config) -> DataLoader:
    """Batches of the squashed views, or one image as it is at a time."""
    squash = config.segment.size == "squash"
    return eval_loader(
        shards,
        Squash(size=config.data.image_size) if squash else Whole(),
        batch_size=config.segment.batch_size if squash else 1,
        numbers=[number for name in names for number in shards.numbers_of(name)],
        workers=config.data.workers,
    )


def main(arguments: Sequence[str]) -> None:
    run, split, folder, name, cams, *overrides = arguments
    segment(Path(run), split, folder, overrides, None if name == "-" else name, cams=cams == "cams")


if __name__ == "__main__":
    with report_user_errors():
        main(sys.argv[1:])
