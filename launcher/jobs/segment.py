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
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from launcher.config.sections import SegmentConfig
from launcher.config.whole import Config
from launcher.errors import RunError, report_user_errors
from launcher.files import place_outputs
from launcher.jobs.crf_pool import (
    QUEUED,
    count_crf_workers,
    crf_pool,
    refine_and_encode,
    run_in_order,
)
from launcher.jobs.crf_sums import settle_segment
from launcher.jobs.infer import judged_rule
from launcher.jobs.network_job import (
    RunJob,
    SamplesOf,
    identify_checkpoint,
    open_images,
    say_where,
    write_next_to,
)
from launcher.jobs.over_shards import Members
from launcher.jobs.segment_images import maps_reader, segment_images
from launcher.jobs.sets import suffix_of
from launcher.jobs.starts import count_here, device_of, join_share
from launcher.processes.accelerator import make_accelerator
from launcher.processes.launch import read_arguments
from launcher.processes.surroundings import require_batch
from launcher.run.build import Trained, load_trained
from launcher.run.folder import Run
from launcher.run.idle import refuse_overrides
from shards.folder import ShardFolder
from shards.remote import Place, absolute, join
from wsss.models.base import Network


def segments_folder(run: Path, name: str | None) -> Place:
    """RUN/segments, or RUN/segments@NAME for masks made with other settings, where the run's outputs lie."""
    return place_outputs(run / f"segments{suffix_of(name)}")


def segment(
    run: Path,
    split: str,
    folder: Place,
    overrides: Sequence[str] = (),
    name: str | None = None,
    *,
    cams: bool = False,
    overwrite: bool = False,
) -> Place:
    """Write one mask shard per image shard of `folder` below segments_folder; returns the folder of the split.

    Safe to kill and to run again: finished shards stay, the others are done.

    Args:
        overrides: section.key=value, such as segment.scales=[1,1.5]; what they change is kept in the output folder.
        name: of a further set of masks, which stands next to the run's own.
        cams: also the label maps of the CAMs, by the image labels.
        overwrite: remove what was made before, once it is clear that the new masks can be made.

    Raises:
        ConfigError: a scale that leaves nothing of the images, or an override without effect.
        RunError: no trained run, a network that does not segment, shards of other classes or (with `cams`) without
            labels, or an output folder made with other settings.
    """
    refuse_overrides("segment --cams" if cams else "segment", overrides)
    trained = load_trained(Run(run, overrides))
    config, images = trained.run.config, open_images(trained.run, folder)
    if cams and not images.image_label_NK.any():
        raise RunError(f"{folder}: no image has a label, so there are no classes whose CAMs to use; leave out --cams")
    if config.segment.size == "squash":
        settings, side = config.segment, config.data.image_size * max(config.segment.scales)
        require_batch(f"segment.batch_size {settings.batch_size}", settings.batch_size, side)
    try_segment(trained.method.student)
    share = join_share(config)
    config = config.model_copy(update={"segment": settle_segment(config.segment, device_of(config, share))})
    processes = count_here(config, share)
    out = join(segments_folder(run, name), split)
    job = SegmentJob(
        **say_where(trained, images, run=run, out=out, overrides=overrides),
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
class SegmentJob(RunJob):
    """Masks of a run's checkpoint, as its config with these overrides says, and these settings.

    Attributes:
        crf_workers: processes of each process that does the job.
    """

    settings: SegmentConfig
    crf_workers: int
    cams: bool

    @contextmanager
    def samples(self, trained: Trained, images: ShardFolder) -> Iterator[SamplesOf]:
        config = trained.run.config.model_copy(update={"segment": self.settings})
        method, device = trained.method, make_accelerator(config, processes=None).device
        method.to(device).eval()
        work = partial(refine_and_encode, self.shards, self.fingerprint, self.settings)
        with crf_pool(self.crf_workers) as pool:

            def samples_of(name: str) -> Generator[tuple[int, Members]]:
                found = segment_images(method, images, name, config, device, self.cams)
                yield from run_in_order(pool, work, found, QUEUED * max(self.crf_workers, 1))

            yield samples_of


def try_segment(network: Network) -> None:
    """Segment a small black image, so that errors come before an output folder is claimed.

    Raises:
        RunError: the network gives no segmentation.
    """
    side, device = 2 * network.stride, next((p.device for p in network.parameters()), None)
    maps_reader(network)(torch.zeros(1, 3, side, side, device=device))


def identify_masks(config: Config, shards: ShardFolder, checkpoint: Path, cams: bool) -> dict[str, Any]:
    """All that the pixels of the masks depend on."""
    unused = {"batch_size", "workers"} | (set() if config.segment.crf else {"mean_field", "crf_classes"})
    settings = config.segment.model_dump(mode="json", exclude=unused)
    return {
        "shards": absolute(shards.folder),
        "fingerprint": shards.index.fingerprint,
        "image_size": config.data.image_size,
        "precision": config.train.precision,
        "segment": settings,
        "cam_threshold": config.evaluate.threshold if cams else None,
        "cam": asdict(judged_rule(config.cam)) if cams else None,
        **identify_checkpoint(checkpoint),
    }


if __name__ == "__main__":
    with report_user_errors():
        segment(**read_arguments(sys.argv))
