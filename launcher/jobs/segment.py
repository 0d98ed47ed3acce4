"""Checkpoint + image shards -> mask shards, by the network's own segmentation.

`accelerate launch -m launcher.jobs.segment '{"run": "RUN", "split": "val", "folder": "SHARDS"}'`, with the arguments of
`segment` as JSON, is another door: each of n ranks takes every n-th shard, with the same bytes.

Shapes: B images, K foreground classes, C = K + 1, n classes a CRF looks at, S x S the squashed view, H x W pixels of an
image as its owner published it.

    KEY.png     class ids at the image's own size
    KEY.json    {"class_ids": those in the mask, "group", "size": [H, W]}
    KEY.cam.png, KEY.aux_cam.png    with `cams`: label maps of the CAMs, by the image label
"""

import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from launcher.config.sections import Config, SegmentConfig
from launcher.errors import RunError, naming, report_user_errors
from launcher.jobs.crf_pool import (
    QUEUED,
    SegmentedImage,
    count_crf_workers,
    crf_pool,
    refine_and_encode,
    run_in_order,
)
from launcher.jobs.crf_sums import settle_segment, told
from launcher.jobs.infer import judged_rule
from launcher.jobs.over_shards import Members, NetworkJob, SamplesOf, open_images, try_together, write_next_to
from launcher.jobs.pool import may_start_processes, open_shards
from launcher.jobs.starts import count_here, device_of, join_share, stamp_of
from launcher.processes.accelerator import make_accelerator
from launcher.processes.launch import read_arguments
from launcher.run.build import Trained, load_trained
from launcher.run.folder import Run
from shards.batches.augment import Squash, Whole
from shards.batches.batch import Batch, to_device
from shards.batches.loaders import eval_loader
from shards.folder import ShardFolder
from shards.remote import Place, absolute, place_of
from shards.schema import DataError
from wsss.maps.fusion import RULES, TOCO, cams_of_present, fuse_seg_logits
from wsss.maps.pseudo_label import cam_label
from wsss.maps.scales import scaled_views
from wsss.methods.base import Method
from wsss.models.base import Network
from wsss.refine.crf import left_out_mass, proposed_classes

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
    overwrite: bool = False,
) -> Path:
    """Write one mask shard per image shard of `folder` below segments_folder; returns the folder of the split.

    Safe to kill and to run again: finished shards stay, the others are done.

    Args:
        overrides: section.key=value, such as segment.scales=[1,1.5]; what they change is kept in the output folder.
        name: of a further set of masks, which stands next to the run's own.
        cams: also the label maps of the CAMs, by the image labels.
        overwrite: remove what was made before, once it is clear that the new masks can be made.

    Raises:
        ConfigError: a scale that leaves nothing of the images.
        RunError: no trained run, a network that does not segment, shards of other classes or (with `cams`) without
            labels, or an output folder made with other settings.
    """
    trained = load_trained(Run(run, overrides))
    config, images = trained.run.config, open_images(trained.run, folder)
    if cams and not images.image_label_NK.any():
        raise RunError(f"{folder}: no image has a label, so its CAMs cannot be judged; leave out --cams")
    try_segment(trained.method.student)
    share = join_share(config)
    config = config.model_copy(update={"segment": settle_segment(config.segment, device_of(config, share))})
    processes = count_here(config, share)
    out = segments_folder(run, name) / split
    job = SegmentJob(
        out=out.absolute(),
        shards=place_of(absolute(images.folder)),
        fingerprint=images.index.fingerprint,
        weights=stamp_of(trained.checkpoint),
        run=run.absolute(),
        checkpoint=trained.checkpoint.name,
        overrides=tuple(overrides),
        settings=config.segment,
        crf_workers=count_crf_workers(config.segment, share.count if share.ranks else processes),
        cams=cams,
    )
    write_next_to(
        job,
        images,
        identify_masks(config, images, trained.checkpoint, cams),
        opened=lambda: job.samples(trained, images),
        share=share,
        processes=processes,
        label=f"segment {split}",
        overwrite=overwrite,
    )
    return out


@dataclass(frozen=True, kw_only=True)
class SegmentJob(NetworkJob):
    """Masks of a run's checkpoint, as its config with these overrides says, and these settings.

    Attributes:
        crf_workers: processes of each process that does the job.
    """

    run: Path
    checkpoint: str
    overrides: tuple[str, ...]
    settings: SegmentConfig
    crf_workers: int
    cams: bool

    @contextmanager
    def opened(self) -> Iterator[SamplesOf]:
        trained = load_trained(Run(self.run, self.overrides).at(self.checkpoint))
        with self.samples(trained, open_shards(self.shards, self.fingerprint)) as samples_of:
            yield samples_of

    @contextmanager
    def samples(self, trained: Trained, images: ShardFolder) -> Iterator[SamplesOf]:
        """With what is loaded already."""
        config = trained.run.config.model_copy(update={"segment": self.settings})
        method, accelerator = trained.method, make_accelerator(config, processes=None)
        method.to(accelerator.device).eval()
        work = partial(refine_and_encode, self.shards, self.fingerprint, self.settings)
        with crf_pool(self.crf_workers) as pool:

            def samples_of(name: str) -> Generator[tuple[int, Members]]:
                found = segment_images(method, images, name, config, accelerator, self.cams)
                yield from run_in_order(pool, work, found, QUEUED * max(self.crf_workers, 1))

            yield samples_of


def try_segment(network: Network) -> None:
    """Segment a small black image, so that what cannot be is told before an output folder is claimed.

    Raises:
        RunError: the network gives no segmentation.
    """
    side, device = 2 * network.stride, next((p.device for p in network.parameters()), None)
    maps_reader(network, nullcontext)(torch.zeros(1, 3, side, side, device=device))


def identify_masks(config: Config, shards: ShardFolder, checkpoint: Path, cams: bool) -> dict[str, Any]:
    """All that the pixels of the masks depend on."""
    rule = judged_rule(config.cam)
    unused = {"batch_size", "workers"} | (set() if config.segment.crf else {"mean_field", "crf_classes"})
    settings = config.segment.model_dump(mode="json", exclude=unused)
    if config.segment.crf:
        settings["mean_field"] = told(settings["mean_field"])
    return {
        "shards": absolute(shards.folder),
        "fingerprint": shards.index.fingerprint,
        "checkpoint": checkpoint.name,
        "image_size": config.data.image_size,
        "precision": config.train.precision,
        "segment": settings,
        "cam_threshold": config.evaluate.threshold if cams else None,
        "cam": asdict(rule) if cams and rule != TOCO else None,
    }


def maps_reader(
    network: Network, autocast: Callable[[], AbstractContextManager[Any]]
) -> Callable[[Tensor], tuple[dict[str, Tensor], Tensor]]:
    """image -> ({"seg": (B, C, h, w), "cam", "aux_cam": (B, K, h, w) raw}, class scores (B, K)).

    In the precision of `autocast`, without gradients. `aux_cam` only where the network has an auxiliary classifier.
    """

    def read(image: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        with torch.no_grad(), autocast():
            out = network(image)
        if out.seg_logits_BChw is None:
            raise RunError(f"{type(network).__name__} gives no segmentation: choose a model and method that segment")
        maps = {"seg": out.seg_logits_BChw, "cam": out.class_map_BKhw}
        if "aux_map" in out.maps:
            maps["aux_cam"] = out.maps["aux_map"]
        return maps, out.cls_logits_BK

    return read


def segment_images(
    method: Method, shards: ShardFolder, name: str, config: Config, accelerator: Accelerator, cams: bool
) -> Iterator[SegmentedImage]:
    """Segment every image of a shard, in order."""
    settings, stride = config.segment, method.student.stride
    read = maps_reader(method.student, accelerator.autocast)
    flips, scales = RULES[settings.rule]
    for batch in loader_of(shards, name, config):
        where = [shards.where(number) for number in batch["number"]]
        with naming(", ".join(where)):
            cam_labels = cam_labels_of(batch, shards, read, stride, config, accelerator.device) if cams else None
        on_device = to_device(batch, accelerator.device)

        def seg_views(images: Tensor) -> list[tuple[Tensor, ...]]:
            seen = scaled_views(read, images, stride=stride, scales=settings.scales, flip=settings.flip)
            return [view.at_one_layer("seg") for view in seen]

        views = try_together(seg_views, on_device["image"], where)
        for i, number in enumerate(batch["number"]):
            with naming(where[i]):
                one = [tuple(logits[i : i + 1] for logits in view) for view in views]
                seg_logits_CHW = fuse_seg_logits(one, size_of(shards, number), flips=flips, scales=scales)[0]
                if not seg_logits_CHW.isfinite().all():
                    raise DataError(
                        f"{where[i]}: the network's logits are NaN or infinite; take an earlier checkpoint, or "
                        "train.precision=no"
                    )
                image = bring_to_host(number, seg_logits_CHW, settings, cam_labels[i] if cam_labels else {})
            yield image


def bring_to_host(
    number: int, seg_logits_CHW: Tensor, settings: SegmentConfig, cams: Mapping[str, np.ndarray]
) -> SegmentedImage:
    """What the rest needs on the host: class ids, or the probabilities of the classes that a CRF looks at."""
    if not settings.crf:
        return SegmentedImage(number, seg_logits_CHW.argmax(dim=0).to(torch.uint8).cpu().numpy(), None, (), cams)
    probs_CHW = seg_logits_CHW.softmax(dim=0)
    if settings.crf_classes == "all":
        return SegmentedImage(number, None, probs_CHW.cpu().numpy(), tuple(range(len(probs_CHW))), cams)
    class_ids = proposed_classes(probs_CHW)
    left_out = left_out_mass(probs_CHW, class_ids)
    return SegmentedImage(number, None, probs_CHW[class_ids].cpu().numpy(), tuple(class_ids), cams, left_out)


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


def loader_of(shards: ShardFolder, name: str, config: Config) -> DataLoader:
    """Batches of the squashed views, or one image as it is at a time."""
    squash = config.segment.size == "squash"
    return eval_loader(
        shards,
        Squash(size=config.data.image_size) if squash else Whole(),
        batch_size=config.segment.batch_size if squash else 1,
        numbers=shards.numbers_of(name),
        workers=config.data.workers if may_start_processes() else 0,
    )


if __name__ == "__main__":
    with report_user_errors():
        segment(**read_arguments(sys.argv))
