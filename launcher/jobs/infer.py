"""Checkpoint + image shards -> CAM shards.

`accelerate launch -m launcher.jobs.infer RUN SPLIT FOLDER NAME [section.key=value ...]`: each of n ranks takes
every n-th
shard. NAME is '-' for the run's own CAMs, else the name of a further set with other settings.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from launcher.config.sections import CamConfig, Config
from launcher.errors import RunError, report_user_errors
from launcher.jobs import output as jobs
from launcher.jobs.scores import Scores
from launcher.processes.accelerator import make_accelerator
from launcher.progress import Progress
from launcher.run.build import load_trained
from launcher.run.folder import Run
from shards.batches.augment import Squash, Whole
from shards.batches.batch import to_device
from shards.batches.loaders import eval_loader
from shards.folder import ShardFolder
from shards.remote import Place, absolute
from shards.write import write_tar
from wsss.maps.cam import Raw, view_maps
from wsss.maps.fusion import TOCO, CamRule, Fuse, multi_scale_cam
from wsss.maps.scales import Pad
from wsss.maps.windows import sliding_window
from wsss.methods.base import Method

DEFAULT_PAD: dict[Fuse, Pad] = {"mean": "resize", "toco": "pad"}


def cams_folder(run: Path, name: str | None) -> Path:
    """RUN/cams, or RUN/cams@NAME for a further set of CAMs made with other settings."""
    return run / (f"cams@{name}" if name else "cams")


def infer(run: Path, split: str, folder: Place, overrides: Sequence[str] = (), name: str | None = None) -> Path:
    """Write one CAM shard per image shard of `folder` below cams_folder; returns the folder of the split.

    Args:
        overrides: section.key=value, such as cam.scales=[0.5,1]; what they change is kept in the output folder.
        name: of a further set of CAMs, which stands beside the run's own.

    Raises:
        RunError: no trained run, shards of other classes, or an output folder made with other settings.
    """
    (of, method, checkpoint) = load_trained(Run(run, overrides))
    config, class_set = of.config, of.class_set
    shards = ShardFolder(folder)
    if shards.index.classes != class_set.classes:
        raise RunError(f"{folder} has the classes {shards.index.classes}; {run} was trained on {class_set.classes}")
    accelerator = make_accelerator(config, processes=None)
    out = cams_folder(run, name) / split
    if accelerator.is_main_process:
        jobs.open_output(
            out,
            {
                "shards": absolute(shards.folder),
                "fingerprint": shards.index.fingerprint,
                "checkpoint": checkpoint.name,
                "image_size": config.data.image_size,
                "cam": cam_made_of(config.cam),
            },
        )
    accelerator.wait_for_everyone()
    names = [shard.name for shard in shards.index.shards]
    todo = set(jobs.missing(out, names)[accelerator.process_index :: accelerator.num_processes])
    accelerator.wait_for_everyone()  # nobody writes before everybody has looked
    numbers = [n for n in range(len(shards)) if names[shards.shard_of[n]] in todo]
    method.to(accelerator.device)
    with Progress(len(numbers), f"infer {split}", "image", enabled=accelerator.is_main_process) as progress:
        samples = score_samples(method, shards, numbers, config, accelerator.device)
        for shard_number, of_shard in groupby(samples, key=lambda pair: int(shards.shard_of[pair[0]])):
            write_tar(out / names[shard_number], counted(of_shard, progress))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        jobs.require_all(out, names)
    return out


def counted(samples: Iterable[tuple[int, Scores]], progress: Progress) -> Iterator[tuple[str, dict[str, bytes]]]:
    for _, scores in samples:
        yield scores.key, scores.members()
        progress.advance()


def score_samples(
    method: Method, shards: ShardFolder, numbers: Sequence[int], config: Config, device: torch.device
) -> Iterator[tuple[int, Scores]]:
    """(number, cams) of these samples, in order."""
    whole = config.cam.window_px is not None  # frames of any size: one at a time, their windows make the batch
    loader = eval_loader(
        shards,
        Whole() if whole else Squash(size=config.data.image_size),
        batch_size=1 if whole else config.cam.batch_size,
        numbers=numbers,
        workers=config.data.workers,
    )
    for batch in loader:
        batch = to_device(batch, device)
        cams, probs_BK = cams_of(method, batch["image"], config.cam)
        on_host = {kind: cam_BKhw.cpu().numpy() for kind, cam_BKhw in cams.items()}
        probs = probs_BK.cpu().tolist()
        for i, number in enumerate(batch["number"]):
            channels = chosen_classes(batch["image_label"][i], config.cam)
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
    stride = method.student.stride

    def view(image: torch.Tensor) -> tuple[dict[str, Raw], torch.Tensor]:
        return view_maps(method.student, method.maps_of, image, cam.kinds, cam.layers)

    if cam.window_px is not None:
        step_px = cam.step_px or max(cam.window_px // 2 // stride, 1) * stride
        windows = sliding_window(
            view, window_px=cam.window_px, step_px=step_px, stride=stride, batch_size=cam.batch_size
        )
        return multi_scale_cam(windows, image, stride=stride, rule=inferred_rule(cam))
    return multi_scale_cam(view, image, stride=stride, rule=inferred_rule(cam))


def inferred_rule(cam: CamConfig) -> CamRule:
    """How the CAMs that are written as shards are fused."""
    fuse: Fuse = cam.fuse or "mean"
    return CamRule(cam.scales, cam.flip, fuse, cam.pad or DEFAULT_PAD[fuse])


def judged_rule(cam: CamConfig) -> CamRule:
    """How the CAMs of a method that segments are fused where they are judged: as the config says, else as ToCo does."""
    return replace(TOCO, pad=cam.pad or TOCO.pad) if cam.fuse is None else inferred_rule(cam)


def cam_made_of(cam: CamConfig) -> dict[str, Any]:
    """All that the bytes of CAM shards depend on; `fuse` and `pad` only where they are not what they were before there
    was a choice, so that folders written then can be completed."""
    rule = inferred_rule(cam)
    made_of = cam.model_dump(mode="json", exclude={"batch_size", "fuse", "pad"})
    made_of |= {"fuse": rule.fuse} if rule.fuse != "mean" else {}
    return made_of | ({"pad": rule.pad} if rule.pad != DEFAULT_PAD[rule.fuse] else {})


def chosen_classes(image_label_K: torch.Tensor, cam: CamConfig) -> list[int]:
    """Channels whose maps are kept: all, or those of the image label."""
    if cam.classes == "all":
        return list(range(len(image_label_K)))
    return torch.nonzero(image_label_K).flatten().tolist()


def main(arguments: Sequence[str]) -> None:
    run, split, folder, name, *overrides = arguments
    infer(Path(run), split, folder, overrides, None if name == "-" else name)


if __name__ == "__main__":
    with report_user_errors():
        main(sys.argv[1:])
