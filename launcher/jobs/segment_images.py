"""Images through a network that segments, up to the part that the host does: label maps or probabilities.

Shapes: B images, K foreground classes, C = K + 1, n classes a CRF looks at, S x S the squashed view, H x W pixels of an
image as its owner published it.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from launcher.config.sections import Precision, SegmentConfig
from launcher.config.whole import Config
from launcher.errors import RunError, naming
from launcher.jobs.crf_pool import SegmentedImage
from launcher.jobs.infer import judged_rule
from launcher.jobs.network_job import tell_large, try_together
from launcher.jobs.pool import may_start_processes
from launcher.processes.precision import in_precision
from shards.batches.augment import Squash, Whole
from shards.batches.batch import Batch, to_device
from shards.batches.loaders import eval_loader
from shards.folder import ShardFolder
from shards.schema import DataError
from wsss.maps.fusion import RULES, cams_of_present, fold_views
from wsss.maps.pseudo_label import cam_label
from wsss.maps.scales import scaled_views
from wsss.methods.base import Method
from wsss.models.base import Network
from wsss.refine.crf import left_out_mass, proposed_classes

CAM_KINDS = ("cam", "aux_cam")


def maps_reader(
    network: Network, precision: Precision = "ieee"
) -> Callable[[Tensor], tuple[dict[str, Tensor], Tensor]]:
    """image -> ({"seg": (B, C, h, w), "cam", "aux_cam": (B, K, h, w) raw}, class scores (B, K)).

    Without gradients. `aux_cam` only where the network has an auxiliary classifier.
    """

    def read(image: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        with torch.no_grad(), in_precision(precision, image.device.type):
            out = network(image)
        if out.seg_logits_BChw is None:
            raise RunError(f"{type(network).__name__} does not segment: choose a model and method that do")
        maps = {"seg": out.seg_logits_BChw, "cam": out.class_map_BKhw}
        if "aux_map" in out.maps:
            maps["aux_cam"] = out.maps["aux_map"]
        return maps, out.cls_logits_BK

    return read


def segment_images(
    method: Method, shards: ShardFolder, name: str, config: Config, device: torch.device, cams: bool
) -> Iterator[SegmentedImage]:
    """Segment every image of a shard, in order."""
    settings, stride = config.segment, method.student.stride
    read = maps_reader(method.student, config.train.precision)
    flips, scales = RULES[settings.rule]
    told: list[str] = []
    for batch in loader_of(shards, name, config):
        where = [shards.where(number) for number in batch["number"]]
        if settings.size == "native":
            tell_large(where[0], batch["image"].shape, told)
        with naming(", ".join(where)):
            cam_labels = cam_labels_of(batch, shards, read, stride, config, device) if cams else None
        on_device = to_device(batch, device)

        def seg_views(images: Tensor) -> list[tuple[Tensor, ...]]:
            seen = scaled_views(read, images, stride=stride, scales=settings.scales, flip=settings.flip)
            return [view.at_one_layer("seg") for view in seen]

        views = try_together(seg_views, on_device["image"], where)
        for i, number in enumerate(batch["number"]):
            with naming(where[i]):
                one = [tuple(logits[i : i + 1] for logits in view) for view in views]
                seg_logits_CHW = fold_views(one, size_of(shards, number), flips=flips, scales=scales)[0]
                if not seg_logits_CHW.isfinite().all():
                    raise DataError(
                        f"{where[i]}: the network's logits are NaN or infinite; use an earlier checkpoint, or "
                        "train.precision=ieee"
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
