"""Masks of `wsss segment` + truth -> mIoU, with the protocol that each figure belongs to."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from launcher import jobs
from launcher.errors import RunError
from launcher.mask_measure import MaskTally
from shards.index import tar_members
from shards.schema import decode_mask
from shards.stream import ShardFolder

FEW_IMAGES = 2000  # that many are counted faster in this process than others can be started


def segment_sources_of(run: Path, split: str) -> dict[str, tuple[Path, str]]:
    """{name: (folder of mask shards, extension of the label map)} of all that a run has segmented.

    A name is `segments` of the run's own masks, segments@SET of a further set, and either with .cam or .aux_cam.
    """
    sources = {}
    for folder in sorted(run.glob(f"segments*/{split}")):
        shard = next(iter(sorted(folder.glob("*.tar"))), None)
        extensions = {extension for _, extension, _, _ in tar_members(shard)} if shard else {"png"}
        for extension in sorted(extensions - {"json"}, key=lambda name: (name != "png", name)):
            kind = extension.removesuffix("png").removesuffix(".")
            sources[f"{folder.parent.name}{'.' * bool(kind)}{kind}"] = (folder, extension)
    return sources


def evaluate_segments(run: Path, truth: ShardFolder, seed: int) -> dict[str, dict[str, Any]]:
    """{source: its protocol and figures}, in the form of the other sources of an evaluation.

    Raises:
        RunError: masks of other images, or a shard that is missing.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, (folder, extension) in segment_sources_of(run, truth.index.split).items():
        mend = f"remove the folder and run `wsss segment {run}` again"
        made_of = jobs.of_same_images(folder, truth.index.fingerprint, mend)
        found[name] = {
            "protocol": segment_protocol(made_of, extension, truth.index.split, seed),
            "chain": [],
            "fixed": tally_of(truth, folder, extension).figures(),
            "tuned": None,
        }
    return found


def tally_of(truth: ShardFolder, folder: Path, extension: str) -> MaskTally:
    """Every image of a folder of mask shards counted once; many images are counted in worker processes."""
    names = [shard.name for shard in truth.index.shards]
    jobs.finished(folder, names)
    work = partial(tally_of_shard, truth, folder, extension)
    workers = 1 if len(truth) < FEW_IMAGES else None
    whole = MaskTally(truth.index.as_class_set())
    for part in jobs.run_pool(work, names, workers=workers, label=f"evaluate {folder.parent.name}"):
        whole.extend(part)
    return whole


def tally_of_shard(truth: ShardFolder, folder: Path, extension: str, name: str) -> MaskTally:
    tally = MaskTally(truth.index.as_class_set())
    for number, label_HW in zip(truth.numbers_of(name), labels_of(folder / name, extension, truth), strict=True):
        tally.add(label_HW, truth.mask(number), truth.groups[number])
    return tally


def labels_of(path: Path, extension: str, shards: ShardFolder) -> Iterator[np.ndarray]:
    """The label maps (H, W) of one mask shard, in the order of the image shard of the same name.

    Raises:
        RunError: it holds other samples.
    """
    found = {key: data for key, of_member, _, data in tar_members(path) if of_member == extension}
    wanted = [shards.keys[number] for number in shards.numbers_of(path.name)]
    if list(found) != wanted:
        raise RunError(
            f"{path}: holds {len(found)} '{extension}' maps from {list(found)[:1]}; wanted {len(wanted)} from "
            f"'{wanted[0]}': it belongs to other image shards; remove it and segment again"
        )
    for key, data in found.items():
        yield decode_mask(data, f"{path}: {key}.{extension}")


def segment_protocol(made_of: dict[str, Any], extension: str, split: str, seed: int) -> str:
    """How the masks came about, in words, from what their folder says of itself."""
    of, squash = made_of["segment"], f"image squashed to {made_of['image_size']} px"
    if extension == "png":
        size = squash if of["size"] == "squash" else "image at its own size"
        flips, scales = ("summed", "maxed") if of["rule"] == "voc" else ("maxed", "summed")
        views = f"{size}, scales {listed(of['scales'])}{f' ({scales})' if len(of['scales']) > 1 else ''}"
        views += f" + flip ({flips})" if of["flip"] else ", no flip"
        how = f"{views}, argmax over all classes, {crf_line(of)}"
    else:
        how = (
            f"CAMs of the classes of the image label, {squash}, scales 1, 0.5, 1.5 (summed) + flip (maxed), resized to "
            f"the image, background at <= {made_of['cam_threshold']:g}, no CRF"
        )
    precision = "float32" if made_of["precision"] == "no" else made_of["precision"]
    return f"{how}, {precision}, split {split}, checkpoint {made_of['checkpoint']}, training seed {seed}"


def crf_line(of: dict[str, Any]) -> str:
    if not of["crf"]:
        return "no CRF"
    options = ", ".join(f"{name} {value:g}" for name, value in of["mean_field"].items())
    return f"CRF of {of['crf_classes']} classes ({options})"


def listed(scales: list[float]) -> str:
    return ", ".join(f"{scale:g}" for scale in scales)
