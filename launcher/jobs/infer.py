"""Checkpoint + image shards -> CAM shards.

`accelerate launch -m launcher.jobs.infer '{"run": "RUN", "split": "val", "folder": "SHARDS"}'`, with the arguments of
`infer` as JSON, also works: each of n ranks takes every n-th shard, and the bytes are the same."""

import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from launcher.config.sections import CamConfig
from launcher.config.whole import Config
from launcher.errors import ConfigError, report_user_errors
from launcher.jobs.network_job import (
    RunJob,
    SamplesOf,
    identify_checkpoint,
    open_images,
    say_where,
    tell_large,
    try_together,
    write_next_to,
)
from launcher.jobs.over_shards import Members
from launcher.jobs.pool import may_start_processes
from launcher.jobs.scores import Scores, cams_folder
from launcher.jobs.starts import count_here, join_share
from launcher.processes.accelerator import make_accelerator
from launcher.processes.launch import read_arguments
from launcher.processes.precision import in_precision
from launcher.processes.surroundings import require_batch
from launcher.run.build import Trained, load_trained
from launcher.run.folder import Run
from launcher.run.idle import refuse_idle, refuse_overrides
from shards.batches.augment import Squash, Whole
from shards.batches.batch import to_device
from shards.batches.loaders import eval_loader
from shards.folder import ShardFolder
from shards.remote import Place, absolute, join
from wsss.maps.cam import Raw, ViewMaps, view_maps
from wsss.maps.fusion import DEFAULT_PAD, TOCO, CamRule, Fuse, multi_scale_cam
from wsss.maps.windows import sliding_window
from wsss.methods.base import Method
from wsss.registry import is_ours


def infer(
    run: Path,
    split: str,
    folder: Place,
    overrides: Sequence[str] = (),
    name: str | None = None,
    *,
    overwrite: bool = False,
) -> Place:
    """Write one CAM shard per image shard of `folder` below cams_folder; returns the folder of the split.

    Args:
        overrides: section.key=value, such as cam.scales=[0.5,1]; what they change is kept in the output folder.
        name: of a further set of CAMs, which stands next to the run's own.
        overwrite: remove what was made before, once it is clear that the new CAMs can be made.

    Raises:
        ConfigError: `cam:` asks for what the method does not give, or an override has no effect.
        RunError: no trained run, shards of other classes, or an output folder made with other settings.
    """
    refuse_overrides("infer", overrides)
    trained = load_trained(Run(run, overrides))
    config, images = trained.run.config, open_images(trained.run, folder)
    refuse_idle(config, "cam")
    try_cams(trained.method, config)
    share = join_share(config)
    out = join(cams_folder(run, name), split)
    made_of = {
        "shards": absolute(images.folder),
        "fingerprint": images.index.fingerprint,
        "image_size": config.data.image_size,
        "cam": identify_cam(config.cam),
        "precision": config.train.precision,
        **identify_checkpoint(trained.checkpoint),
    }
    job = InferJob(**say_where(trained, images, run=run, out=out, overrides=overrides))
    write_next_to(
        job,
        images,
        made_of,
        opened=lambda: job.samples(trained, images),
        share=share,
        processes=count_here(config, share),
        label=f"infer {split}",
        overwrite=overwrite,
    )
    return out


@dataclass(frozen=True, kw_only=True)
class InferJob(RunJob):
    """CAMs of a run's checkpoint, as its config with these overrides says."""

    @contextmanager
    def samples(self, trained: Trained, images: ShardFolder) -> Iterator[SamplesOf]:
        config, method = trained.run.config, trained.method
        device = make_accelerator(config, processes=None).device
        method.to(device)

        def samples_of(name: str) -> Generator[tuple[int, Members]]:
            for number, scores in score_samples(method, images, images.numbers_of(name), config, device):
                yield number, scores.members()

        yield samples_of


def try_cams(method: Method, config: Config) -> None:
    """Compute the CAMs of a small black image as `cam:` says, so that errors come before a run trains for hours and
    before a job claims its output folder.

    Raises:
        ConfigError: a kind, layer, window or scale that this method, or images of this size, do not have.
    """
    stride, cam, side = method.student.stride, config.cam, config.data.image_size
    if cam.window_px is None and int(min(cam.scales) * side) < 1:
        raise ConfigError(
            f"cam.scales has {min(cam.scales):g}, at which nothing is left of images of {side} px; wanted "
            f"{(10_000 // side + 1) / 10_000} or more"
        )
    require_batch(f"cam.batch_size {cam.batch_size}", cam.batch_size, cam.window_px or side * max(cam.scales))
    try:
        image = torch.zeros(1, 3, 2 * stride, 2 * stride, device=next(method.parameters()).device)
        cams_of(method, image, cam.model_copy(update={"scales": (1.0,)}))
    except (ValueError, RuntimeError) as error:  # a network that changes its features in place has no gradient maps
        if isinstance(error, RuntimeError) and not (is_ours(type(method)) and is_ours(type(method.student))):
            raise  # a fault in the code of others is shown where it is
        said = str(error).partition("\nException raised from")[0]  # what follows is torch's own stack
        raise ConfigError(f"CAMs cannot be read: {said}") from error


def score_samples(
    method: Method, shards: ShardFolder, numbers: Sequence[int], config: Config, device: torch.device
) -> Iterator[tuple[int, Scores]]:
    """(number, cams) of these samples, in order; in the precision of training."""
    whole = config.cam.window_px is not None  # frames of any size: one at a time, their windows make the batch
    loader = eval_loader(
        shards,
        Whole() if whole else Squash(size=config.data.image_size),
        batch_size=1 if whole else config.cam.batch_size,
        numbers=numbers,
        workers=config.data.workers if may_start_processes() else 0,
        pin_memory=device.type == "cuda",
    )
    told: list[str] = []
    for batch in loader:
        batch = to_device(batch, device)
        where = [shards.where(number) for number in batch["number"]]
        if whole:
            tell_large(where[0], batch["image"].shape, told)
        with in_precision(config.train.precision, device.type):
            cams, probs_BK = try_together(lambda images: cams_of(method, images, config.cam), batch["image"], where)
        on_host = {kind: cam_BKhw.cpu().numpy() for kind, cam_BKhw in cams.items()}
        probs = probs_BK.cpu().tolist()
        for i, number in enumerate(batch["number"]):
            channels = choose_classes(batch["image_label"][i], config.cam)
            yield (
                number,
                Scores(
                    key=batch["key"][i],
                    group=shards.groups[number],
                    class_ids=tuple(channel + 1 for channel in channels),
                    cls_probs=tuple(probs[i]),
                    maps={kind: cam_BKhw[i][channels] for kind, cam_BKhw in on_host.items()},
                ),
            )


def cams_of(method: Method, image: torch.Tensor, cam: CamConfig) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Cams of all kinds (B, K, h, w) and class probabilities (B, K), as the config's `cam:` says."""
    method.eval()
    return multi_scale_cam(view_of(method, cam), image, stride=method.student.stride, rule=inferred_rule(cam))


def view_of(method: Method, cam: CamConfig) -> ViewMaps:
    """image -> (raw maps of all kinds, class probabilities) of one view, through windows where the config says so."""
    stride = method.student.stride

    def view(image: torch.Tensor) -> tuple[dict[str, Raw], torch.Tensor]:
        return view_maps(method.student, method.maps_of, image, cam.kinds, cam.layers)

    if cam.window_px is None:
        return view
    step_px = cam.step_px or max(cam.window_px // 2 // stride, 1) * stride
    return sliding_window(view, window_px=cam.window_px, step_px=step_px, stride=stride, batch_size=cam.batch_size)


def inferred_rule(cam: CamConfig) -> CamRule:
    """How the CAMs that are written as shards are fused."""
    fuse: Fuse = cam.fuse or "mean"
    return CamRule(cam.scales, cam.flip, fuse, cam.pad or DEFAULT_PAD[fuse])


def judged_rule(cam: CamConfig) -> CamRule:
    """How the CAMs of a method that segments are fused where they are judged: as the config says, else as ToCo does."""
    return replace(TOCO, pad=cam.pad or TOCO.pad) if cam.fuse is None else inferred_rule(cam)


def identify_cam(cam: CamConfig) -> dict[str, Any]:
    """Everything that the bytes of CAM shards depend on."""
    rule = inferred_rule(cam)
    return {**cam.model_dump(mode="json", exclude={"batch_size"}), "fuse": rule.fuse, "pad": rule.pad}


def choose_classes(image_label_K: torch.Tensor, cam: CamConfig) -> list[int]:
    """Channels whose maps are kept: all, or those of the image label."""
    if cam.classes == "all":
        return list(range(len(image_label_K)))
    return torch.nonzero(image_label_K).flatten().tolist()


if __name__ == "__main__":
    with report_user_errors():
        infer(**read_arguments(sys.argv))
